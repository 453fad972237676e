"use strict";
// Draws each chart when it comes into view, again when the colours change, and hands out its picture and its numbers.
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();
window.failed = [];

function look() {
  const ink = dark.matches ? "#e8e8e8" : "#1a1a1a", line = dark.matches ? "#3a3d42" : "#e2e2e2";
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  return {
    background: null, view: { stroke: null }, axis, font: "system-ui, sans-serif",
    legend: { labelColor: ink, titleColor: ink, labelLimit: 400 }, title: { color: ink },
  };
}

function read(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const { keys, words, rows } = spec.data;
  const value = (x) => (Array.isArray(x) ? words[x[0]] : x);
  const values = rows.map((row) => Object.fromEntries(keys.map((key, i) => [key, value(row[i])]).filter((pair) => pair[1] !== null)));
  return { ...spec, data: { values } };
}

async function draw(figure) {
  const spec = read(figure);
  const full = { width: "container", height: 300, config: look(), autosize: { type: "fit", contains: "padding" }, ...spec };
  try {
    const made = await vegaEmbed(figure.querySelector(".plot"), full, { renderer: "svg", actions: false });
    drawn.set(figure, made.view);
    figure.dataset.drawn = "yes";
  } catch (error) {
    window.failed.push(`${figure.dataset.name}: ${error}`);
    figure.querySelector(".plot").textContent = `This chart could not be drawn: ${error}`;
  }
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !drawn.has(entry.target)) {
      drawn.set(entry.target, null);
      draw(entry.target);
    }
  }
}, { rootMargin: "400px" });
document.querySelectorAll("figure.chart").forEach((figure) => seen.observe(figure));
dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));

function csv(figure) {
  const rows = read(figure).data.values;
  const keys = [...new Set(rows.flatMap(Object.keys))];
  const cell = (x) => (x === undefined || x === null ? "" : /[",\n]/.test(x) ? `"${String(x).replaceAll('"', '""')}"` : x);
  return [keys, ...rows.map((row) => keys.map((key) => row[key]))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

document.addEventListener("click", async (event) => {
  const kind = event.target.dataset && event.target.dataset.get;
  if (!kind) return;
  const figure = event.target.closest("figure");
  if (!drawn.get(figure)) await draw(figure);
  const text = kind === "csv" ? csv(figure) : await drawn.get(figure).toSVG();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "image/svg+xml" }));
  link.download = `${figure.dataset.name.replace(/[^\w.-]+/g, "-")}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
