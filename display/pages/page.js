// The viewer of the pages. A page has this script, then results.js or training.js.
"use strict";

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse(find("#data").textContent);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
document.documentElement.classList.add("js");

// ---- attention maps: files epochNNN_attention.js call attention(...), since a page on disk may not read other files

const pending = new Map(); // script element -> function that takes its blocks

function attention(blocks) {
  pending.get(document.currentScript)(blocks);
}

function loadAttention(source) {
  const script = document.createElement("script");
  script.src = source;
  const loaded = new Promise((resolve, reject) => {
    pending.set(script, resolve);
    script.onerror = () => reject(new Error(`${decodeURIComponent(source)} is missing`));
  });
  document.head.append(script);
  return loaded.finally(() => {
    pending.delete(script);
    script.remove();
  });
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// ---- the viewer: before and after, and attention maps

const viewer = document.createElement("dialog");
viewer.className = "viewer";
viewer.setAttribute("aria-labelledby", "viewing");
viewer.innerHTML = `
  <div class="bar">
    <h2 id="viewing"></h2>
    <button type="button" class="previous" aria-label="Previous" title="Previous (P)">&#8592;</button>
    <button type="button" class="next" aria-label="Next" title="Next (N)">&#8594;</button>
    <button type="button" class="close" aria-label="Close" title="Close (Esc)">&#10005;</button>
  </div>
  <div class="panes">
    <section class="compare" aria-label="Before and after">
      <div class="stage">
        <img class="after"><img class="before"><span class="divider"></span>
        <input type="range" min="0" max="100" step="0.5" value="50" aria-label="Divider between before and after">
      </div>
      <div class="choice"><select name="before" aria-label="Before"></select>
        <select name="after" aria-label="After"></select></div>
    </section>
    <section class="attention" aria-label="Attention map">
      <div class="stage" tabindex="0" role="application" aria-describedby="attention-status"
        aria-label="Attention map: click a point, or move it with the arrow keys">
        <img><canvas></canvas><span class="ring"></span>
      </div>
      <div class="blocks" role="radiogroup" aria-label="Attention block"></div>
      <p id="attention-status" role="status"></p>
    </section>
  </div>`;
document.body.append(viewer);

const [comparePane, attentionPane] = [find(".compare", viewer), find(".attention", viewer)];
const attentionStatus = find("#attention-status");
const shown = { article: null, images: [], blocks: [], block: null, lastTitle: "", point: [0.5, 0.5] };

/** Open the viewer on a card, with an image of the card and a point of the image, [x, y] in 0..1. */
async function openViewer(article, label, point) {
  const images = findAll("figure", article).map((figure) => {
    const [element, caption] = [find("img", figure), find("figcaption", figure)];
    return { label: figure.dataset.label, group: figure.parentElement, element, caption: caption?.textContent ?? "" };
  });
  Object.assign(shown, { article, images, blocks: [], block: null }, point && { point });
  find("h2", viewer).textContent = find("h2", article).textContent;
  showCompare(images.filter((image) => !image.label.startsWith("attention_")), label);
  attentionPane.hidden = !article.dataset.attention;
  if (!viewer.open) {
    viewer.showModal();
    (attentionPane.hidden ? slider : attentionStage).focus({ preventScroll: true });
  }
  if (!attentionPane.hidden) await openAttention(article, label);
}

function showCompare(images, label) {
  comparePane.hidden = images.length < 2;
  if (comparePane.hidden) return;
  const group = shown.images.find((image) => image.label === label)?.group;
  const chosen =
    images.find((image) => image.label === label) ?? images.find((image) => image.group === group) ?? images[0];
  const before = images.find((image) => image.group === chosen.group);
  const after = chosen === before ? (images[images.indexOf(before) + 1] ?? images[0]) : chosen;
  for (const [side, start] of [["before", before], ["after", after]]) {
    const select = find(`[name=${side}]`, comparePane);
    select.replaceChildren(...images.map((image) => new Option(image.caption, image.label)));
    select.value = start.label;
    showSide(side);
  }
}

function showSide(side) {
  const label = find(`[name=${side}]`, comparePane).value;
  setImage(find(`img.${side}`, comparePane), shown.images.find((image) => image.label === label));
}

function setImage(target, { element }) {
  target.src = element.src;
  target.alt = element.alt;
  target.decode().then(() => {
    const stage = target.parentElement;
    stage.parentElement.style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
    stage.classList.toggle("pixels", target.naturalWidth <= 96);
  }, () => {}); // another image replaced it
}

async function openAttention(article, label) {
  const source = article.dataset.attention;
  attentionStatus.textContent = "loading …";
  try {
    const blocks = await loadAttention(source);
    for (const block of blocks) block.values = await inflate(block.weights);
    if (shown.article !== article || article.dataset.attention !== source) return; // another card replaced it
    shown.blocks = blocks;
  } catch (error) {
    attentionStatus.textContent = error.message;
    return;
  }
  const chosen = shown.blocks.findIndex((block) => blockLabels(block).includes(label));
  const last = shown.blocks.findIndex((block) => blockTitle(block) === shown.lastTitle);
  const choices = shown.blocks.map((block, index) => {
    const mean = block.entropy.reduce((sum, bits) => sum + bits, 0) / block.entropy.length;
    const choice = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "block", value: index });
    const title = Object.assign(document.createElement("b"), { textContent: blockTitle(block) });
    const facts = `gamma ${block.gamma.toFixed(3)}, entropy ${mean.toFixed(2)} of ${maxEntropy(block)} bits`;
    choice.append(radio, title, Object.assign(document.createElement("span"), { textContent: facts }));
    return choice;
  });
  find(".blocks", attentionPane).replaceChildren(...choices);
  selectBlock(Math.max(chosen, chosen < 0 ? last : 0, 0));
}

const blockTitle = (block) => `${block.network} ${block.stage}`;
/** Labels of the figures that show a block: the image below the map, and the figures of results and of training. */
const blockLabels = ({ over, network, stage }) => [over, `attention_${network}`, `attention_${network}_${stage}`];
const maxEntropy = (block) => Number(Math.log2(block.cells[0] * block.cells[1]).toFixed(2));

function selectBlock(index) {
  shown.block = shown.blocks[index];
  shown.lastTitle = blockTitle(shown.block);
  find(`[value="${index}"]`, attentionPane).checked = true;
  setImage(find("img", attentionPane), shown.images.find((image) => image.label === shown.block.over));
  showAttention(shown.point);
}

/** Show the attention map of the query position nearest to a point, [x, y] in 0..1. */
function showAttention(point) {
  const { block } = shown;
  if (!block) return;
  shown.point = point;
  const [rows, columns] = block.queries;
  const [height, width] = block.keys;
  const row = clamp(Math.floor(point[1] * rows), 0, rows - 1);
  const column = clamp(Math.floor(point[0] * columns), 0, columns - 1);
  const query = row * columns + column;
  drawHeat(block.values.subarray(query * height * width, (query + 1) * height * width), height, width);
  const center = (index, count, cells) => (Math.floor(((index + 0.5) * cells) / count) + 0.5) / cells;
  const ring = find(".ring", attentionPane);
  ring.style.left = `${100 * center(column, columns, block.cells[1])}%`;
  ring.style.top = `${100 * center(row, rows, block.cells[0])}%`;
  const entropy = block.entropy[query];
  const cells = block.cells[0] * block.cells[1];
  const equivalent = Math.max(1, Math.round(2 ** entropy));
  attentionStatus.textContent =
    `Attention from this point (row ${row + 1}, column ${column + 1} of ${rows} × ${columns}): entropy ` +
    `${entropy.toFixed(2)} of ${maxEntropy(block)} bits, as much as uniform attention to ` +
    `${equivalent.toLocaleString("en")} of ${cells.toLocaleString("en")} positions. Highest weight: ` +
    `${block.most[query].toPrecision(3)} times uniform.` +
    (block.gamma === 0 ? " Gamma is 0, so the block has no effect yet." : "");
}

/** Draw a heat map in the colors of display/attention_maps.py, transparent where weights are low. */
function drawHeat(values, height, width) {
  const canvas = find("canvas", attentionPane);
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  values.forEach((value, index) => {
    image.data.set([...data.heat[Math.round(0.85 * value)], Math.round(0.75 * value)], 4 * index);
  });
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
}

/** The position of the pointer in an element, [x, y] in 0..1. */
const relativePosition = (event, element) => {
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const attentionStage = find(".stage", attentionPane);
const slider = find("input", comparePane);
slider.oninput = () => find(".stage", comparePane).style.setProperty("--at", `${slider.value}%`);
comparePane.onchange = (event) => event.target.matches("select") && showSide(event.target.name);
find(".blocks", attentionPane).onchange = (event) => selectBlock(event.target.value);
attentionStage.onpointerdown = (event) => {
  attentionStage.setPointerCapture(event.pointerId);
  showAttention(relativePosition(event, attentionStage));
};
attentionStage.onpointermove = (event) => event.buttons && showAttention(relativePosition(event, attentionStage));
attentionStage.onkeydown = (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!move || !shown.block) return;
  event.preventDefault();
  const [rows, columns] = shown.block.queries;
  const to = (value, count, by) => clamp((Math.floor(value * count) + by + 0.5) / count, 0.5 / count, 1 - 0.5 / count);
  showAttention([to(shown.point[0], columns, move[0]), to(shown.point[1], rows, move[1])]);
};
viewer.onclick = (event) => {
  if (event.target === viewer || event.target.matches(".close")) viewer.close();
  if (event.target.matches(".previous")) showNeighbor(-1);
  if (event.target.matches(".next")) showNeighbor(1);
};
viewer.onkeydown = (event) => {
  if (event.target.matches("select")) return;
  if (event.key === "p") showNeighbor(-1);
  if (event.key === "n") showNeighbor(1);
};
document.addEventListener("click", (event) => {
  const article = event.target.closest("article:not(.wide)");
  if (!article) return;
  if (event.target.matches(".view")) openViewer(article);
  if (event.target.matches("figure img")) {
    openViewer(article, event.target.parentElement.dataset.label, relativePosition(event, event.target));
  }
});

const visibleCards = () => findAll("article:not(.wide)").filter((article) => !article.hidden);

/** Show the card that is `by` places after the shown one. */
let showNeighbor = (by) => {
  const cards = visibleCards();
  const next = cards[cards.indexOf(shown.article) + by];
  if (next) openViewer(next);
};
