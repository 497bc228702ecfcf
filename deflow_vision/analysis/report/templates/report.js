"use strict";

// The values of a chart under the pointer.
for (const svg of document.querySelectorAll("svg[data-lines]")) {
  const lines = JSON.parse(svg.dataset.lines);
  const figure = svg.closest("figure");
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  svg.addEventListener("pointermove", (event) => {
    const scale = svg.getScreenCTM();
    const x = (event.clientX - scale.e) / scale.a;
    const near = lines.map(({ name, style, points }) => ({
      name, style,
      point: points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)),
    }));
    const at = near.reduce((a, b) =>
      (Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a)).point;
    tip.replaceChildren(text("b", `step ${at[2]}`));
    near.forEach(({ name, style, point }) => {
      if (Math.abs(point[0] - at[0]) > 3) return;  // this line has no value here
      const row = tip.appendChild(document.createElement("div"));
      row.className = style;
      row.append(document.createElement("i"), text("span", `${name} ${point[3]}`));
    });
    tip.hidden = false;
    const box = figure.getBoundingClientRect();
    const left = scale.e + at[0] * scale.a - box.left;
    const fits = left + 12 + tip.offsetWidth < box.width;
    tip.style.left = `${fits ? left + 12 : Math.max(0, left - 12 - tip.offsetWidth)}px`;
    tip.style.top = `${svg.getBoundingClientRect().top - box.top + 12}px`;
  });
}

function text(tag, words) {
  const element = document.createElement(tag);
  element.textContent = words;
  return element;
}

// A click on a head sorts by that column: figures from the greatest, names from A; again: the other
// way round. Rows without a figure stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const rows = [...body.rows];
      const numeric = rows.every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
      const before = head.getAttribute("aria-sort") ?? (numeric ? "ascending" : "descending");
      const order = before === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...rows);
    });
  });
}

// What is typed is looked for in the rows of a section; parts without any are folded away.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const section = document.getElementById(input.dataset.filters);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of section.querySelectorAll("tbody tr")) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
    }
    for (const part of section.querySelectorAll("details")) {
      part.hidden = !part.querySelector("tbody tr:not([hidden])");
    }
  });
}

// The controls of a video that nobody points at would hide a third of it.
for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  video.tabIndex = 0;
  for (const name of ["pointerenter", "focus"]) {
    video.addEventListener(name, () => { video.controls = true; });
  }
  video.addEventListener("pointerleave", () => { video.controls = false; });
  video.addEventListener("error", () => {
    const words = text("span", "This video is damaged, or this browser lacks its codec (H.264).");
    words.className = "unplayable";
    video.closest("figure").querySelector("figcaption").append(words);
  });
}

// Paper shows everything.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
