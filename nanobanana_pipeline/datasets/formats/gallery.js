
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const byId = (id) => document.getElementById(id);
const about = read("about");
const thumbnails = read("thumbnails");
const columnOf = new Map(about.columns.map((name, place) => [name, place]));
const rows = read("rows").map((values, place) => ({ values, place }));
const of = (row, name) => (columnOf.has(name) ? row.values[columnOf.get(name)] : null);
const sources = new Map(about.sources.map((each) => [`${each.prompt_set}|${each.seed}`, each]));
const AT_ONCE = 120;
const WORDS = {
  blank: "blank or near-uniform",
  seed: "another seed reported",
  unsaid: "no seed reported",
  reference: "from a reference picture",
  unmarked: "no provenance mark",
};
const BAD = new Set(["blank", "seed"]);

function flagsOf(row) {
  const asked = of(row, "seed_asked");
  const reported = of(row, "seed_reported");
  const marks = (of(row, "provenance") || "").split(" ").filter(Boolean);
  return [
    ...(of(row, "blank") ? ["blank"] : []),
    ...(reported !== null && asked !== null && String(asked) !== String(reported) ? ["seed"] : []),
    ...(reported === null ? ["unsaid"] : []),
    ...(of(row, "ref_sha256") ? ["reference"] : []),
    ...(marks.length ? marks.map((mark) => `mark ${mark}`) : ["unmarked"]),
  ];
}
const flagWords = (flag) => WORDS[flag] || flag.replace(/^mark /, "bears ");

for (const row of rows) {
  row.flags = flagsOf(row);
  const said = ["prompt", "prompt_id", "row_id", "image_sha256", "key"].map((name) => of(row, name));
  row.words = said.filter((each) => each !== null).join("\n").toLowerCase();
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function pictureOf(row) {
  const webp = thumbnails[of(row, "image_sha256")];
  if (!webp) return element("span", "", "no thumbnail");
  const image = element("img");
  image.alt = "";
  image.decoding = "async";
  image.src = `data:image/webp;base64,${webp}`;
  return image;
}

function badgesOf(row) {
  const shown = row.flags.filter((flag) => BAD.has(flag));
  return [
    element("span", "badge split", of(row, "split")),
    element("span", "badge", `seed ${of(row, "seed")}`),
    ...shown.map((flag) => element("span", "badge bad", WORDS[flag])),
  ];
}

/* What is looked at: the rows that pass, of which the first ones are on the page. */
const grid = byId("grid");
let passing = rows;
let onPage = 0;

function cardOf(row, place) {
  const card = element("button", "card");
  card.type = "button";
  card.dataset.place = place;
  const frame = element("div", "picture");
  frame.append(pictureOf(row));
  const badges = element("div", "badges");
  badges.append(...badgesOf(row));
  card.append(frame, element("div", "caption", of(row, "prompt")), badges);
  return card;
}

function showMore() {
  const next = passing.slice(onPage, onPage + AT_ONCE);
  grid.append(...next.map((row, at) => cardOf(row, onPage + at)));
  onPage += next.length;
}

const FILTERS = {
  split: (row) => [of(row, "split")],
  prompt_set: (row) => [of(row, "prompt_set")],
  seed: (row) => [String(of(row, "seed"))],
  flag: (row) => row.flags,
};

function filter() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.keys(FILTERS).filter((name) => byId(name).value !== "");
  passing = rows.filter(
    (row) =>
      words.every((word) => row.words.includes(word)) &&
      chosen.every((name) => FILTERS[name](row).includes(byId(name).value)),
  );
  grid.replaceChildren();
  onPage = 0;
  showMore();
  byId("none").hidden = passing.length > 0;
  byId("reset").disabled = !words.length && !chosen.length;
  const all = rows.length.toLocaleString("en");
  byId("count").textContent =
    passing.length === rows.length ? `${all} pictures` : `${passing.length.toLocaleString("en")} of ${all}`;
}

function clear() {
  byId("words").value = "";
  for (const name of Object.keys(FILTERS)) byId(name).value = "";
  filter();
  byId("words").focus();
}

for (const [name, values] of Object.entries(FILTERS)) {
  const counts = new Map();
  for (const row of rows) for (const value of values(row)) counts.set(value, (counts.get(value) || 0) + 1);
  const sorted = [...counts].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  byId(name).append(new Option("all", ""));
  for (const [value, count] of sorted) {
    const words = name === "flag" ? flagWords(value) : value;
    byId(name).append(new Option(`${words} (${count.toLocaleString("en")})`, value));
  }
  byId(name).parentElement.hidden = name === "prompt_set" && counts.size < 2;
  byId(name).addEventListener("change", filter);
}
byId("words").addEventListener("input", filter);
byId("reset").addEventListener("click", clear);
byId("again").addEventListener("click", clear);
new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && showMore(), {
  rootMargin: "1200px",
}).observe(byId("more"));

/* One picture with all that is known of it. */
const detail = byId("detail");
let open = 0;
const CODES = /sha256|uri|key|fingerprint|manifest|_id|phash|group/;

function section(title, facts) {
  if (!facts.length) return [];
  const list = element("dl");
  for (const [name, value] of facts) {
    const unknown = value === null || value === undefined || value === "";
    const text = unknown ? "unknown" : typeof value === "object" ? JSON.stringify(value) : String(value);
    list.append(
      element("dt", "", name.replaceAll("_", " ")),
      element("dd", unknown ? "unknown" : CODES.test(name) ? "code" : "", text),
    );
  }
  return [element("h3", "", title), list];
}

function show(place) {
  open = place;
  const row = passing[place];
  const named = (...names) => names.map((name) => [name, of(row, name)]);
  const source = sources.get(`${of(row, "prompt_set")}|${of(row, "seed")}`) || {};
  const below = (key) => (key ? about.uri + key : null);
  byId("large").replaceChildren(pictureOf(row));
  const marks = row.flags.map((flag) => element("span", BAD.has(flag) ? "badge bad" : "badge", flagWords(flag)));
  byId("marks").replaceChildren(element("span", "badge split", of(row, "split")), ...marks);
  byId("place").textContent = `${(place + 1).toLocaleString("en")} of ${passing.length.toLocaleString("en")}`;
  byId("prompt").textContent = of(row, "prompt");
  byId("earlier").disabled = place === 0;
  byId("later").disabled = place === passing.length - 1;
  byId("facts").replaceChildren(
    ...section("Picture", [
      ["image_id", of(row, "row_id")],
      ["image_sha256", of(row, "image_sha256")],
      ["image_uri", below(of(row, "image_key"))],
      ["size", `${of(row, "width")} × ${of(row, "height")} pixels, ${Number(of(row, "bytes")).toLocaleString("en")} bytes, ${of(row, "format")}`],
      ...named("key", "split", "group"),
    ]),
    ...section("Where it comes from", [
      ["prompt_set", of(row, "prompt_set")],
      ["prompt_set_fingerprint", source.fingerprint],
      ...named("prompt_id"),
      ["negative_prompt", of(row, "negative_prompt") || "none"],
      ...(of(row, "ref_sha256") ? named("ref_sha256") : []),
      ...named("seed", "seed_asked", "seed_reported", "sample", "request_key", "provider_id", "run_id", "accepted"),
      ["manifest", below(source.manifest)],
    ]),
    ...section("Parameters of the partition; a row's own go before them", Object.entries(source.parameters || {})),
    ...section("Looks", [
      ...named("mean", "entropy", "sharpness", "blank", "phash"),
      ["provenance", of(row, "provenance") || "none"],
      ...named("digital_source_type"),
    ]),
    ...section("From the prompt table", named(...about.attributes)),
  );
  if (!detail.open) detail.showModal();
  byId("facts").parentElement.scrollTop = 0;
}

function step(by) {
  const place = open + by;
  if (place < 0 || place >= passing.length) return;
  while (onPage <= place) showMore();
  show(place);
}

grid.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card) show(Number(card.dataset.place));
});
byId("close").addEventListener("click", () => detail.close());
byId("earlier").addEventListener("click", () => step(-1));
byId("later").addEventListener("click", () => step(1));
detail.addEventListener("click", (event) => event.target === detail && detail.close());
detail.addEventListener("close", () => grid.children[open]?.focus());
detail.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

/* Arrows walk over the grid; a slash goes to the search. */
grid.addEventListener("keydown", (event) => {
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const card = event.target.closest(".card");
  if (by === undefined || !card) return;
  const place = Number(card.dataset.place) + by;
  if (place >= onPage) showMore();
  const next = grid.children[place];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !detail.open && document.activeElement !== byId("words")) {
    event.preventDefault();
    byId("words").focus();
  }
});
filter();
