"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = figures.map(() => 0);

  // ---- plots

  function dressed(layout, width, small, height) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const copy = JSON.parse(JSON.stringify(layout));
    copy.font = Object.assign({}, copy.font, { color: colour("--text"), family: style.fontFamily });
    for (const key of Object.keys(copy)) {
      if (/^[xy]axis\d*$/.test(key)) {
        copy[key].gridcolor = copy[key].zerolinecolor = colour("--line");
        copy[key].fixedrange = width < 600; // a finger scrolls the page
      }
    }
    copy.hoverlabel = Object.assign({}, copy.hoverlabel, {
      bgcolor: colour("--card"), bordercolor: colour("--muted"), font: { color: colour("--text") },
    });
    copy.width = Math.max(width, (layout.meta && layout.meta.width) || 0);
    copy.height = height || (small ? 300 : width < 600 ? 360 : 420);
    if (width < 600 && copy.legend) {
      copy.margin = Object.assign({}, copy.margin, { r: 8 });
    }
    return copy;
  }

  function draw(index) {
    const box = document.getElementById("plot-" + index);
    const figure = figures[index][chosen[index]];
    const small = box.classList.contains("small");
    const layout = dressed(figure.layout, box.parentElement.clientWidth, small, Number(box.dataset.height));
    return Plotly.react(box, figure.data, layout, {
      displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"],
    });
  }

  async function drawAll() {
    for (let index = 0; index < figures.length; index++) {
      await draw(index);
      await new Promise((resume) => setTimeout(resume)); // lets the reader scroll meanwhile
    }
    document.documentElement.dataset.drawn = String(figures.length);
  }

  for (const select of document.querySelectorAll("select[data-plot]")) {
    select.addEventListener("change", () => {
      chosen[Number(select.dataset.plot)] = Number(select.value);
      draw(Number(select.dataset.plot));
    });
  }
  let waiting = 0;
  let width = document.documentElement.clientWidth;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return; // a phone's address bar comes and goes
    width = document.documentElement.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 200);
  });
  dark.addEventListener("change", drawAll);

  // ---- sorting

  const table = document.getElementById("trials-table");
  const heads = Array.from(table.tHead.rows[0].cells);
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function key(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.n !== undefined) return Number(cell.dataset.n);
    if (cell.dataset.t !== undefined) return cell.textContent.trim();
    return null; // missing
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return words.compare(a, b);
  }

  function sortBy(column) {
    const head = heads[column];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const body = table.tBodies[0];
    const rows = Array.from(body.rows).map((row) => ({ row, key: key(row, column), first: Number(row.cells[0].dataset.n) }));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) {
        return (a.key === null) - (b.key === null) || a.first - b.first; // missing ones last, either way
      }
      return sign * compare(a.key, b.key) || a.first - b.first;
    });
    body.append(...rows.map((item) => item.row));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortBy(column));
  });

  drawAll();
})();
