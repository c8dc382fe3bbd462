"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PALETTE = ["#4477dd", "#e0792f", "#3a9e5c", "#c2478f", "#8a6bd1", "#c9a227", "#2fa7b5", "#9a6a4b", "#6b8e23", "#d1495b"];
const CONFIG = { responsive: true, scrollZoom: false, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

function themed(layout) {
  const axis = { gridcolor: ink("--line"), zerolinecolor: ink("--line"), automargin: true, exponentformat: "power" };
  const { many, ...given } = layout;
  return { ...given, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: PALETTE,
    font: { color: ink("--ink"), family: "inherit", size: 12 }, margin: { l: 56, r: 12, t: 12, b: 44 },
    showlegend: many ? false : undefined, legend: { orientation: "h", y: -0.26, yanchor: "top", font: { size: 11 } }, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
}

// ---- plots, drawn when they come into sight
const plots = [...document.querySelectorAll("[data-figure]")];
function drawPlot(node) {
  const figure = DATA.figures[node.dataset.figure];
  Plotly.react(node, figure.data, themed({ ...figure.layout, many: figure.data.length > 12 }), { ...CONFIG, displayModeBar: false });
  node.dataset.drawn = "1";
}
const watcher = new IntersectionObserver((seen) => seen.forEach((entry) => {
  if (entry.isIntersecting && !entry.target.dataset.drawn) drawPlot(entry.target);
}), { rootMargin: "200px" });

// ---- the room: arrays of a layer are unpacked when it is chosen
const KINDS = { "<f4": Float32Array, "<u1": Uint8Array, "<u2": Uint16Array };
function unpack(text, kind) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new KINDS[kind](bytes.buffer);
}
const cache = new Map();
function layerOf(number) {
  if (cache.has(number)) return cache.get(number);
  const raw = DATA.room.layers[number], layer = { ...raw };
  for (const key of ["centres", "radii", "lower", "upper", "points"]) if (raw[key]) layer[key] = unpack(raw[key], "<f4");
  for (const key of ["depth", "leaf"]) if (raw[key]) layer[key] = unpack(raw[key], "<u1");
  for (const key of ["ids", "ranks"]) if (raw[key]) layer[key] = unpack(raw[key], raw.wide);
  cache.set(number, layer);
  return layer;
}

// One sphere as latitude rings; all spheres of a level are one mesh.
const RINGS = 9, SEGMENTS = 14;
const UNIT = (() => {
  const at = [], faces = [];
  for (let i = 0; i <= RINGS; i++) for (let j = 0; j < SEGMENTS; j++) {
    const a = Math.PI * i / RINGS, b = 2 * Math.PI * j / SEGMENTS;
    at.push([Math.sin(a) * Math.cos(b), Math.sin(a) * Math.sin(b), Math.cos(a)]);
  }
  for (let i = 0; i < RINGS; i++) for (let j = 0; j < SEGMENTS; j++) {
    const a = i * SEGMENTS + j, b = i * SEGMENTS + (j + 1) % SEGMENTS, c = a + SEGMENTS, d = b + SEGMENTS;
    faces.push([a, b, c], [b, d, c]);
  }
  return { at, faces };
})();

const state = { layer: 0, level: 0, colour: "domain", depth: "none", scale: 0.5, candidates: 1 };
const expertColour = (expert) => `hsl(${40 + (expert * 137.5) % 280} 62% 52%)`; // no reds: red says lost
const centre = (layer, expert) => { const o = 3 * (state.level * layer.experts + expert); return [layer.centres[o], layer.centres[o + 1], layer.centres[o + 2]]; };

function lossOf(layer) {
  const lost = new Float64Array(layer.experts), total = new Float64Array(layer.experts);
  if (!layer.ranks) return { lost, total, tokens: [], slots: 0, gone: 0 };
  const tokens = [], width = layer.top_k;
  let gone = 0;
  for (let t = 0; t * width < layer.ranks.length; t++) {
    let missing = false;
    for (let k = 0; k < width; k++) {
      const expert = layer.ids[t * width + k], away = layer.ranks[t * width + k] >= state.candidates;
      total[expert] += 1;
      if (away) { lost[expert] += 1; gone += 1; missing = true; }
    }
    tokens.push(missing);
  }
  return { lost, total, tokens, slots: layer.ranks.length, gone };
}

function sphereTrace(layer, loss) {
  const x = [], y = [], z = [], i = [], j = [], k = [], facecolor = [];
  for (let e = 0; e < layer.experts; e++) {
    const [cx, cy, cz] = centre(layer, e), r = layer.radii[state.level * layer.experts + e] * state.scale, first = x.length;
    for (const [ux, uy, uz] of UNIT.at) { x.push(cx + r * ux); y.push(cy + r * uy); z.push(cz + r * uz); }
    const share = loss.total[e] ? loss.lost[e] / loss.total[e] : 0;
    const paint = share > 0.1 ? `rgb(${200 + 40 * share},${70 - 30 * share},60)` : expertColour(e);
    for (const [a, b, c] of UNIT.faces) { i.push(first + a); j.push(first + b); k.push(first + c); facecolor.push(paint); }
  }
  return { type: "mesh3d", name: "spheres", x, y, z, i, j, k, facecolor, opacity: 0.13, flatshading: false, hoverinfo: "none",
    lighting: { ambient: 0.75, diffuse: 0.5, specular: 0.1 }, visible: state.scale > 0 };
}

function centreTrace(layer, loss) {
  const at = Array.from({ length: layer.experts }, (_, e) => centre(layer, e));
  return { type: "scatter3d", mode: "markers", name: "experts", x: at.map((c) => c[0]), y: at.map((c) => c[1]), z: at.map((c) => c[2]),
    hoverinfo: "none", marker: { size: layer.experts > 96 ? 4 : 6, symbol: "circle", line: { width: 1, color: ink("--sheet") },
      color: at.map((_, e) => (loss.total[e] && loss.lost[e] / loss.total[e] > 0.1 ? ink("--bad") : expertColour(e))) } };
}

function tokenTraces(layer, loss) {
  if (!layer.points) return [];
  const count = DATA.room.tokens.length, domain = unpack(DATA.room.domain, "<u1");
  const groups = new Map();
  for (let t = 0; t < count; t++) {
    const key = state.colour === "domain" ? DATA.room.domains[domain[t]] : state.colour === "lost" ? (loss.tokens[t] ? "loses an expert" : "keeps all") : "tokens";
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(t);
  }
  const fixed = { "loses an expert": ink("--bad"), "keeps all": ink("--quiet") };
  return [...groups].map(([name, rows], number) => {
    const at = (axis) => rows.map((t) => layer.points[3 * (state.level * count + t) + axis]);
    const colour = state.colour === "expert" ? rows.map((t) => expertColour(layer.ids[t * layer.top_k])) : fixed[name] || PALETTE[number % PALETTE.length];
    return { type: "scatter3d", mode: "markers", name: String(name).replaceAll("<", "&lt;"), x: at(0), y: at(1), z: at(2), marker: { size: 2.6, color: colour, opacity: 0.85 },
      text: rows.map((t) => JSON.stringify(DATA.room.tokens[t]).replaceAll("<", "&lt;")), hovertemplate: "%{text}<extra>" + String(name).replaceAll("<", "&lt;") + "</extra>" };
  });
}

function boxTrace(layer) {
  const x = [], y = [], z = [], width = 3 * layer.levels, shift = 3 * state.level;
  const edges = [[0, 1], [1, 3], [3, 2], [2, 0], [4, 5], [5, 7], [7, 6], [6, 4], [0, 4], [1, 5], [2, 6], [3, 7]];
  for (let n = 0; n < layer.depth.length && state.depth !== "none"; n++) {
    if (state.depth === "leaves" ? !layer.leaf[n] : layer.depth[n] !== Number(state.depth)) continue;
    const corner = (bits) => [0, 1, 2].map((axis) => ((bits >> axis) & 1 ? layer.upper : layer.lower)[n * width + shift + axis]);
    for (const [a, b] of edges) {
      const p = corner(a), q = corner(b);
      x.push(p[0], q[0], null); y.push(p[1], q[1], null); z.push(p[2], q[2], null);
    }
  }
  return { type: "scatter3d", mode: "lines", name: "boxes", x, y, z, hoverinfo: "skip", line: { width: 2.5, color: ink("--accent") }, visible: x.length > 0 };
}

function drawRoom() {
  const layer = layerOf(state.layer);
  const loss = lossOf(layer);
  tellLoss(layer, loss);
  hideCard();
  const axis = { backgroundcolor: "rgba(0,0,0,0)", gridcolor: ink("--line"), zerolinecolor: ink("--line"), color: ink("--quiet"), showspikes: false, title: { text: "" }, tickfont: { size: 10 } };
  const layout = { paper_bgcolor: "rgba(0,0,0,0)", font: { color: ink("--ink"), size: 12 }, margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: true,
    legend: { x: 0, y: 0, orientation: "h", bgcolor: "rgba(0,0,0,0)", itemsizing: "constant" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--quiet"), activecolor: ink("--accent") }, uirevision: `${state.layer}/${state.level}`,
    hoverlabel: { font: { family: "ui-monospace, monospace" } },
    scene: { xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "data", hovermode: "closest", camera: { eye: { x: 1.15, y: 1.15, z: 0.75 } } } };
  const traces = layer.levels ? [sphereTrace(layer, loss), centreTrace(layer, loss), boxTrace(layer), ...tokenTraces(layer, loss)] : [];
  return Plotly.react("canvas", traces, layout, CONFIG).then((node) => {
    if (!node.dataset.bound) {
      node.dataset.bound = "1";
      node.on("plotly_hover", (event) => showCard(event.points[0]));
      node.on("plotly_click", (event) => showCard(event.points[0]));
      node.on("plotly_unhover", hideCard);
    }
    node.dataset.shown = `${state.layer}/${state.level}`;
  });
}

function tellLoss(layer, loss) {
  const place = $("loss");
  if (!layer.levels) { place.textContent = "This layer keeps its dense gate: nothing is approximated here."; return; }
  if (!loss.slots) { place.textContent = "No text was given, so no tokens are shown: write the report with --text to see what is lost."; return; }
  const away = loss.tokens.filter(Boolean).length, percent = (a, b) => (100 * a / b).toFixed(1) + " %";
  const worst = [...loss.lost.keys()].sort((a, b) => loss.lost[b] - loss.lost[a]).slice(0, 3).filter((e) => loss.lost[e] > 0);
  place.innerHTML = `With the ${state.candidates} best of ${layer.experts} candidates, <b>${percent(loss.gone, loss.slots)}</b> of the gate's choices are lost, ` +
    `touching ${percent(away, loss.tokens.length)} of these ${loss.tokens.length} tokens` + (worst.length ? `; most of all of experts ${worst.join(", ")}.` : ".");
}

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
function showCard(point) {
  const trace = point.data.name, layer = layerOf(state.layer);
  const expert = trace === "experts" ? point.pointNumber : trace === "spheres" ? Math.floor(point.pointNumber / UNIT.at.length) : -1;
  if (expert < 0 || expert >= layer.experts) return;
  const card = layer.cards[expert] || {}, loss = lossOf(layer), rows = [];
  const row = (name, value) => rows.push(`<dt>${name}</dt><dd>${value}</dd>`);
  row("radius", layer.radii[state.level * layer.experts + expert].toFixed(3));
  if (card.usage !== undefined) row("load", (100 * card.usage).toFixed(2) + " % of choices");
  if (card.topic) row("topic", `${escape(card.topic)}, ${card.topic_lift.toFixed(1)}x its share`);
  if (card.class) row("class", `${escape(card.class)}, ${card.class_lift.toFixed(1)}x`);
  if (card.tokens && card.tokens.length) row("tokens", card.tokens.map((t) => `<code>${escape(t.replaceAll("\n", "⏎"))}</code>`).join(" "));
  if (loss.total[expert]) row("lost", `${loss.lost[expert]} of ${loss.total[expert]} choices at C = ${state.candidates}`);
  $("card").innerHTML = `<h4>Expert ${expert}</h4><dl>${rows.join("")}</dl>`;
  $("card").dataset.expert = expert;
  $("card").hidden = false;
}
function hideCard() { $("card").hidden = true; }

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, label]) => new Option(label, value, false, String(value) === String(chosen))));
}
function chooseLayer(number) {
  const layer = layerOf(number);
  state.layer = number;
  state.level = Math.min(state.level, Math.max(layer.levels - 1, 0));
  state.candidates = layer.candidates || layer.top_k;
  $("candidates").min = layer.top_k; $("candidates").max = layer.experts; $("candidates").value = state.candidates;
  $("count").textContent = `${state.candidates} of ${layer.experts}`;
  options($("level"), Array.from({ length: layer.levels }, (_, l) => [l, `${l + 1}${l ? "" : " (most informative)"}`]), state.level);
  const deepest = layer.depth ? Math.max(...layer.depth) : 0;
  options($("depth"), [["none", "none"], ...Array.from({ length: deepest + 1 }, (_, d) => [d, `depth ${d}`]), ["leaves", "leaves"]], state.depth);
  state.depth = $("depth").value;
}
function startRoom() {
  if (!$("canvas")) return;
  options($("layer"), DATA.room.layers.map((layer, n) => [n, `${layer.path}${layer.levels ? "" : " (dense)"}`]), 0);
  const first = Math.max(DATA.room.layers.findIndex((layer) => layer.levels), 0);
  $("layer").value = first;
  if (!DATA.room.tokens) $("colour").closest("label").hidden = true;
  chooseLayer(first);
  $("layer").onchange = () => { chooseLayer(Number($("layer").value)); drawRoom(); };
  $("level").onchange = () => { state.level = Number($("level").value); drawRoom(); };
  $("colour").onchange = () => { state.colour = $("colour").value; drawRoom(); };
  $("depth").onchange = () => { state.depth = $("depth").value; drawRoom(); };
  $("scale").onchange = () => { state.scale = Number($("scale").value); drawRoom(); };
  $("candidates").oninput = () => {
    state.candidates = Number($("candidates").value);
    $("count").textContent = `${state.candidates} of ${layerOf(state.layer).experts}`;
    clearTimeout(startRoom.timer);
    startRoom.timer = setTimeout(drawRoom, 60);
  };
  drawRoom();
}
// The text is painted first: the library, five megabytes, is compiled only in the next frame.
function startDrawing() {
  const library = document.createElement("script");
  library.textContent = $("plotly").textContent;
  document.head.append(library);
  startRoom();
  plots.forEach((node) => watcher.observe(node));
}
requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(startDrawing, 0)));

const redraw = () => { plots.filter((node) => node.dataset.drawn).forEach(drawPlot); if ($("canvas")) drawRoom(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => plots.forEach(drawPlot));
