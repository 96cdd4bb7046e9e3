// The viewer of the pages. With results.js or display/training.js after it, this is all the script of a page.
"use strict";

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse(find("#data").textContent);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
document.documentElement.classList.add("js");

// ---- attention data: scripts that call attention(...), since a page on disk may not read other files

const waiting = new Map();

function attention(blocks) {
  waiting.get(document.currentScript)(blocks);
}

function loadAttention(source) {
  const script = document.createElement("script");
  script.src = source;
  const loaded = new Promise((resolve, reject) => {
    waiting.set(script, resolve);
    script.onerror = () => reject(new Error(`${decodeURIComponent(source)} is missing`));
  });
  document.head.append(script);
  return loaded.finally(() => {
    waiting.delete(script);
    script.remove();
  });
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// ---- the viewer: before and after, and where attention looks

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
    <section class="looks" aria-label="Attention">
      <div class="stage" tabindex="0" role="application" aria-describedby="look"
        aria-label="Where attention looks: click a point, or move it with the arrow keys">
        <img><canvas></canvas><span class="ring"></span>
      </div>
      <div class="blocks" role="radiogroup" aria-label="Attention block"></div>
      <p id="look" role="status"></p>
    </section>
  </div>`;
document.body.append(viewer);

const [compare, looks] = [find(".compare", viewer), find(".looks", viewer)];
const shown = { article: null, pictures: [], blocks: [], block: null, point: [0.5, 0.5] };

/** Open the viewer on a card, at a picture of it and a point of that, [x, y] in 0..1. */
async function view(article, label, point) {
  const pictures = findAll("figure", article).map((figure) => {
    const [image, caption] = [find("img", figure), find("figcaption", figure)];
    return { label: figure.dataset.label, group: figure.parentElement, image, caption: caption?.textContent ?? "" };
  });
  Object.assign(shown, { article, pictures, blocks: [], block: null }, point && { point });
  find("h2", viewer).textContent = find("h2", article).textContent;
  const comparable = pictures.filter((picture) => !picture.label.startsWith("attention_"));
  showCompare(comparable, label);
  looks.hidden = !article.dataset.attention;
  if (!viewer.open) {
    viewer.showModal();
    (looks.hidden ? slider : lookStage).focus({ preventScroll: true });
  }
  if (!looks.hidden) await openAttention(article, label);
}

function showCompare(pictures, label) {
  compare.hidden = pictures.length < 2;
  if (compare.hidden) return;
  const chosen = pictures.find((picture) => picture.label === label) ?? pictures[0];
  const before = pictures.find((picture) => picture.group === chosen.group);
  const after = chosen === before ? (pictures[pictures.indexOf(before) + 1] ?? pictures[0]) : chosen;
  for (const [name, start] of [["before", before], ["after", after]]) {
    const select = find(`[name=${name}]`, compare);
    select.replaceChildren(...pictures.map((picture) => new Option(picture.caption, picture.label)));
    select.value = start.label;
    showSide(name);
  }
}

function showSide(name) {
  const label = find(`[name=${name}]`, compare).value;
  const { image } = shown.pictures.find((picture) => picture.label === label);
  setPicture(find(`img.${name}`, compare), image);
}

function setPicture(target, image) {
  target.src = image.src;
  target.alt = image.alt;
  target.decode().then(() => {
    const stage = target.parentElement;
    stage.parentElement.style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
    stage.classList.toggle("pixels", target.naturalWidth <= 96);
  }, () => {}); // another picture came first
}

async function openAttention(article, label) {
  const source = article.dataset.attention;
  find("#look").textContent = "loading …";
  try {
    const blocks = await loadAttention(source);
    for (const block of blocks) block.values = await inflate(block.weights);
    if (shown.article !== article || article.dataset.attention !== source) return; // another card came first
    shown.blocks = blocks;
  } catch (error) {
    find("#look").textContent = error.message;
    return;
  }
  const name = label?.replace("attention_", "");
  const last = blockTitle(shown.last);
  const first = shown.blocks.findIndex((block) => [block.over, block.network].includes(label && name));
  const same = shown.blocks.findIndex((block) => blockTitle(block) === last);
  const choices = shown.blocks.map((block, index) => {
    const mean = block.entropy.reduce((sum, bits) => sum + bits, 0) / block.entropy.length;
    const choice = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "block", value: index });
    const title = Object.assign(document.createElement("b"), { textContent: blockTitle(block) });
    const facts = `gamma ${block.gamma.toFixed(3)}, entropy ${mean.toFixed(2)} of ${mostBits(block)}`;
    choice.append(radio, title, Object.assign(document.createElement("span"), { textContent: facts }));
    return choice;
  });
  find(".blocks", looks).replaceChildren(...choices);
  selectBlock(Math.max(first, first < 0 ? same : 0, 0));
}

const blockTitle = (block) => block && `${block.network} ${block.stage}`;
const mostBits = (block) => Number(Math.log2(block.cells[0] * block.cells[1]).toFixed(2));

function selectBlock(index) {
  shown.block = shown.last = shown.blocks[index];
  find(`[value="${index}"]`, looks).checked = true;
  const over = shown.pictures.find((picture) => picture.label === shown.block.over);
  setPicture(find("img", looks), over.image);
  look(shown.point);
}

/** Show where the block looks from the cell nearest to a point, [x, y] in 0..1. */
function look(point) {
  const { block } = shown;
  if (!block) return;
  shown.point = point;
  const [rows, columns] = block.queries;
  const [height, width] = block.keys;
  const row = clamp(Math.floor(point[1] * rows), 0, rows - 1);
  const column = clamp(Math.floor(point[0] * columns), 0, columns - 1);
  const query = row * columns + column;
  drawHeat(block.values.subarray(query * height * width, (query + 1) * height * width), height, width);
  const middle = (index, count, cells) => (Math.floor(((index + 0.5) * cells) / count) + 0.5) / cells;
  const ring = find(".ring", looks);
  ring.style.left = `${100 * middle(column, columns, block.cells[1])}%`;
  ring.style.top = `${100 * middle(row, rows, block.cells[0])}%`;
  const entropy = block.entropy[query];
  const wide = Math.max(1, Math.round(2 ** entropy));
  find("#look").textContent =
    `From row ${row + 1}, column ${column + 1} of ${rows} × ${columns}: entropy ${entropy.toFixed(2)} of ` +
    `${mostBits(block)} bits, as wide as ${wide.toLocaleString("en")} of ` +
    `${(block.cells[0] * block.cells[1]).toLocaleString("en")} places; at most ${block.most[query].toPrecision(3)} ` +
    `times an even look.` + (block.gamma === 0 ? " Gamma is 0: the block adds nothing yet." : "");
}

/** Colours as in display/attention_maps.py; the picture stays to be seen below. */
function drawHeat(values, height, width) {
  const canvas = find("canvas", looks);
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  values.forEach((value, index) => {
    image.data.set([...data.heat[Math.round(0.85 * value)], Math.round(0.75 * value)], 4 * index);
  });
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
}

const place = (event, element) => {
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const lookStage = find(".stage", looks);
const slider = find("input", compare);
slider.oninput = () => find(".stage", compare).style.setProperty("--at", `${slider.value}%`);
compare.onchange = (event) => event.target.matches("select") && showSide(event.target.name);
find(".blocks", looks).onchange = (event) => selectBlock(event.target.value);
lookStage.onpointerdown = (event) => {
  lookStage.setPointerCapture(event.pointerId);
  look(place(event, lookStage));
};
lookStage.onpointermove = (event) => event.buttons && look(place(event, lookStage));
lookStage.onkeydown = (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !shown.block) return;
  event.preventDefault();
  const [rows, columns] = shown.block.queries;
  const to = (value, count, move) => clamp((Math.floor(value * count) + move + 0.5) / count, 0.5 / count, 1 - 0.5 / count);
  look([to(shown.point[0], columns, step[0]), to(shown.point[1], rows, step[1])]);
};
viewer.onclick = (event) => {
  if (event.target === viewer || event.target.matches(".close")) viewer.close();
  if (event.target.matches(".previous")) step(-1);
  if (event.target.matches(".next")) step(1);
};
viewer.onkeydown = (event) => {
  if (event.target.matches("select")) return;
  if (event.key === "p") step(-1);
  if (event.key === "n") step(1);
};
document.addEventListener("click", (event) => {
  const article = event.target.closest("article:not(.wide)");
  if (!article) return;
  if (event.target.matches(".view")) view(article);
  if (event.target.matches("figure img")) {
    view(article, event.target.parentElement.dataset.label, place(event, event.target));
  }
});

const visibleCards = () => findAll("article:not(.wide)").filter((article) => !article.hidden);

/** Show the next card; negative: the one before. */
let step = (by) => {
  const cards = visibleCards();
  const next = cards[cards.indexOf(shown.article) + by];
  if (next) view(next);
};
