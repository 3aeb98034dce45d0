"use strict";
// The browser of what a run made. Texts lie in the page in deflated chunks (eval/report_pairs.py) and are opened when they are looked at.
(() => {
  const PAGE = 20;
  const MAX_CELLS = 400000;
  const MAX_CHOICES = 60; // more are searched, not listed
  const KEPT_CHUNKS = 48; // opened, of each kind: some 40 MB
  const BREATH_MS = 12; // of work at a time, so that the page stays alive

  // Text goes in by textContent alone: nothing that a model wrote is ever parsed as HTML.
  function make(tag, className, ...inside) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...inside);
    return element;
  }

  function makeText(text, className = "") {
    const box = make("div", `text ${className}`, text || make("em", "soft", "(empty)"));
    return Object.assign(box, { dir: "auto", tabIndex: 0 });
  }

  async function inflate(element) {
    const coded = atob(element.textContent);
    const bytes = new Uint8Array(coded.length);
    for (let i = 0; i < coded.length; i += 1) bytes[i] = coded.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }

  // Rows in chunks; `starts` are the numbers of the chunks' first rows. The chunks used last stay open.
  class Shelf {
    constructor(name, starts) {
      this.elements = [...document.querySelectorAll(`script[data-of="${name}"]`)];
      this.starts = starts;
      this.open = new Map();
    }

    read(at) {
      const found = this.open.get(at) ?? inflate(this.elements[at]).then(JSON.parse);
      this.open.delete(at);
      this.open.set(at, found);
      if (this.open.size > KEPT_CHUNKS) this.open.delete(this.open.keys().next().value);
      return found;
    }

    async row(number) {
      let at = this.starts.findIndex((start) => start > number);
      if (at < 0) at = this.starts.length;
      return (await this.read(at - 1))[number - this.starts[at - 1]];
    }
  }

  // Say, for each word, whether the other text lacks it: by the longest common subsequence, for long texts by presence.
  function differ(a, b) {
    let head = 0;
    while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
    let tail = 0;
    while (tail < a.length - head && tail < b.length - head && a.at(-1 - tail) === b.at(-1 - tail)) tail += 1;
    const x = a.slice(head, a.length - tail);
    const y = b.slice(head, b.length - tail);
    const marks = [a.map((_, i) => i >= head && i < a.length - tail), b.map((_, i) => i >= head && i < b.length - tail)];
    if (x.length * y.length > MAX_CELLS) {
      const [inX, inY] = [new Set(x), new Set(y)];
      x.forEach((word, i) => { marks[0][head + i] = !inY.has(word); });
      y.forEach((word, i) => { marks[1][head + i] = !inX.has(word); });
      return marks;
    }
    const width = y.length + 1;
    const best = new Uint32Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i -= 1) {
      for (let j = y.length - 1; j >= 0; j -= 1) {
        best[i * width + j] = x[i] === y[j]
          ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      }
    }
    for (let i = 0, j = 0; i < x.length && j < y.length;) {
      if (x[i] === y[j]) {
        marks[0][head + i++] = false;
        marks[1][head + j++] = false;
      } else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i += 1;
      else j += 1;
    }
    return marks;
  }

  const show = (number) => (number === null ? "-" : String(Number(number.toPrecision(4))));
  const count = (number) => number.toLocaleString("en-US");
  const TONES = { positive: "chosen", negative: "rejected" };

  // Pieces of a text, and of each whether it is marked: the labelled ones, `ends` being where they begin and stop.
  function cut(text, ends) {
    const places = [0, ...ends, text.length];
    return places.slice(1).map((end, i) => [text.slice(places[i], end), i % 2 === 1]);
  }

  // Words that another text lacks: words stand at the even places and the space between them at the odd ones.
  function compare(text, other) {
    const [a, b] = [text, other].map((whole) => whole.split(/(\s+)/));
    const [marks, others] = differ(...[a, b].map((pieces) => pieces.filter((_, at) => at % 2 === 0)));
    const join = (pieces, found) => pieces.map((piece, i) => [piece, i % 2 === 0 ? found[i / 2] : found[(i - 1) / 2] && found[(i + 1) / 2]]);
    return [join(a, marks), join(b, others)];
  }

  // The pieces of each side, marked. Of several sides each is compared with the first; of two both are marked.
  function mark(sides, compared) {
    const plain = ([, , text, , ends = []]) => cut(text, ends);
    if (!compared || sides.length < 2 || sides.some(([, , , , ends = []]) => ends.length)) return sides.map(plain);
    const found = sides.slice(1).map((side) => compare(sides[0][2], side[2]));
    return [found.length === 1 ? found[0][0] : plain(sides[0]), ...found.map((pair) => pair[1])];
  }

  function side([name, score, , note], pieces) {
    const body = makeText(" ");
    body.textContent = "";
    let run = "";
    let marked = false;
    const flush = () => {
      if (run) body.append(marked ? make("mark", "", run) : run);
      run = "";
    };
    pieces.forEach(([piece, now]) => {
      if (now !== marked) flush();
      marked = now;
      run += piece;
    });
    flush();
    if (!body.textContent.trim()) body.append(make("em", "soft", "(empty)"));
    const words = [name, score === null ? "" : `score ${show(score)}`, note].filter(Boolean).join(", ");
    return make("div", TONES[name] ?? name, make("p", "label", words), body);
  }

  function drawReply([index, text, finish, tokens, scores], sides) {
    const words = [`answer ${index}`, `${tokens} tokens`];
    if (finish !== "stop") words.push(finish === "length" ? "cut off" : finish);
    const label = make("p", "label", words.join(", "));
    new Set(sides.filter((one) => text.trim() === one[2].trim()).map(([name]) => name)).forEach((name) => {
      if (name !== "answer") label.append(" ", make("span", `badge ${TONES[name] ?? name}`, name));
    });
    const box = make("div", "reply", label, makeText(text));
    scores.forEach(([scorer, value, detail]) => {
      box.append(make("p", "label", `${scorer} ${show(value)}${detail ? `: ${detail}` : ""}`));
    });
    return box;
  }

  function drawDialogue(dialogue, sides) {
    const asked = dialogue.asked.map(([step, role, sent, replies], number) => {
      const title = `${number + 1}. ${step}, ${role || "main model"}: ${replies.length === 1 ? "1 answer" : `${replies.length} answers`}`;
      const box = make("details", "exchange", make("summary", "", title));
      box.open = number === 0;
      box.append(make("p", "label", "sent"));
      sent.forEach(([who, text]) => box.append(make("p", "label", who), makeText(text)));
      box.append(make("p", "label", "came back"), make("div", "sides", ...replies.map((reply) => drawReply(reply, sides))));
      return box;
    });
    const verdicts = dialogue.verdicts.map(([judge, one, other, forward, backward]) => {
      const say = (verdict) => (verdict === "tie" ? "tie" : `answer ${verdict === "first" ? one : other}`);
      return make("li", "", `${judge}: answer ${one} before ${other}: ${say(forward)}; ${other} before ${one}: ${say(backward)}`);
    });
    const rest = [];
    if (verdicts.length) rest.push(make("p", "label", "verdicts in both orders"), make("ul", "verdicts", ...verdicts));
    if (dialogue.reference) rest.push(make("p", "label", "reference, which no model saw"), makeText(dialogue.reference));
    return [...asked, ...rest];
  }

  // A field of all items: numbers, or choices as places in a list of values.
  class Field {
    constructor({ name, numbers, values, codes }) {
      Object.assign(this, { name, numbers, values, codes });
    }

    say(i) { return this.numbers ? show(this.numbers[i]) : this.values[this.codes[i]]; }

    compare(i, j) {
      if (!this.numbers) return this.say(i) < this.say(j) ? -1 : Number(this.say(i) > this.say(j));
      const [a, b] = [this.numbers[i], this.numbers[j]];
      return a === null || b === null ? Number(a === null) - Number(b === null) : a - b;
    }

    // Return a filter's controls, and a function that makes its test; a test is null where nothing is asked.
    control(changed) {
      const input = (label, type) => {
        const box = Object.assign(document.createElement("input"), { type, step: "any", autocomplete: "off" });
        box.addEventListener("input", changed);
        return [make("label", "", label, box), box];
      };
      if (this.numbers) {
        const [[from, low], [to, high]] = [input("at least", "number"), input("at most", "number")];
        return [[from, to], () => {
          if (low.value === "" && high.value === "") return null;
          // The slack is for floats: a margin of 0.3 - 0.2 is meant to be at least 0.1.
          const floor = low.value === "" ? -Infinity : Number(low.value) - 1e-9;
          const ceiling = high.value === "" ? Infinity : Number(high.value) + 1e-9;
          return (i) => this.numbers[i] !== null && this.numbers[i] >= floor && this.numbers[i] <= ceiling;
        }];
      }
      if (this.values.length > MAX_CHOICES) {
        const [label, box] = input("contains", "search");
        return [[label], () => {
          const fits = this.values.map((value) => value.toLowerCase().includes(box.value.toLowerCase()));
          return box.value ? (i) => fits[this.codes[i]] : null;
        }];
      }
      const counts = this.values.map(() => 0);
      this.codes.forEach((code) => { counts[code] += 1; });
      const select = make("select", "", new Option("any", ""));
      this.values.forEach((value, code) => {
        if (counts[code]) select.add(new Option(`${value || "(none)"} (${count(counts[code])})`, String(code)));
      });
      select.addEventListener("input", changed);
      return [[make("label", "", "is", select)], () => (select.value === "" ? null : (i) => this.codes[i] === Number(select.value))];
    }
  }

  async function browse(root) {
    const part = root.dataset.browser;
    const index = JSON.parse(document.getElementById(`index-${part}`).textContent);
    const items = new Shelf(`items-${part}`, index.items);
    const dialogues = new Shelf(`dialogues-${part}`, index.dialogues);
    const packed = JSON.parse(await inflate(document.getElementById(`fields-${part}`)));
    const fields = packed.fields.map((field) => new Field(field));
    const find = (name) => root.querySelector(`[data-role=${name}]`);
    const [search, where, sort, add, chips, status, list, back, next, go] =
      ["search", "where", "sort", "add", "chips", "status", "list", "back", "next", "go"].map(find);
    const tests = new Map();
    let [page, found, timer, turn] = [0, [], 0, 0];

    const single = index.kind[0].toUpperCase() + index.kind.slice(1, -1);

    function drawItem(i, [id, prompt, sides]) {
      const pieces = mark(sides, index.marks);
      const facts = fields.filter((field) => field.say(i) && !field.name.startsWith("score of")).map((field) => make("span", "", `${field.name} `, make("b", "", field.say(i))));
      const made = make("details", "made", make("summary", "", "How it was made"));
      made.addEventListener("toggle", async () => {
        if (!made.open || made.childElementCount > 1) return;
        const at = packed.dialogues[i];
        if (at < 0) made.append(make("p", "soft", "This page does not hold its dialogue; exchanges.jsonl may."));
        else made.append(...drawDialogue(await dialogues.row(at), sides));
      });
      return make("article", "item",
        make("p", "soft", `${single} ${count(i + 1)}, id ${id}`), makeText(prompt, "prompt"),
        make("div", "sides", ...sides.map((one, at) => side(one, pieces[at]))), make("p", "facts", ...facts), made);
    }

    async function draw(mine, words = "") {
      const pages = Math.max(1, Math.ceil(found.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      const shown = found.slice(page * PAGE, (page + 1) * PAGE);
      const rows = await Promise.all(shown.map((i) => items.row(i)));
      if (mine !== turn) return;
      status.textContent = words || `${count(found.length)} of ${count(index.num)} ${index.kind}, page ${count(page + 1)} of ${count(pages)}`;
      list.replaceChildren(...shown.map((i, at) => drawItem(i, rows[at])));
      back.disabled = page === 0;
      next.disabled = page === pages - 1;
      Object.assign(go, { value: page + 1, max: pages, disabled: false });
    }

    // Return the items that hold a text, or null where another search began meanwhile.
    async function seek(text, mine) {
      const needle = text.toLowerCase();
      const raw = JSON.stringify(needle).slice(1, -1);
      const place = where.value;
      const collect = ([id, prompt, sides]) => (place === "prompt" ? [prompt] : [
        ...(place ? [] : [id, prompt]), ...sides.filter(([name]) => !place || name === place).flatMap(([, , text, note = ""]) => [text, note])]);
      const hits = new Uint8Array(index.num);
      let since = performance.now();
      for (let at = 0; at < items.elements.length; at += 1) {
        const json = await inflate(items.elements[at]);
        if (json.toLowerCase().includes(raw)) {
          JSON.parse(json).forEach((row, i) => {
            hits[index.items[at] + i] = Number(collect(row).some((part) => part.toLowerCase().includes(needle)));
          });
        }
        if (performance.now() - since > BREATH_MS) {
          status.textContent = `Searching: ${count(index.items[at])} of ${count(index.num)} ${index.kind}`;
          await new Promise((resume) => { setTimeout(resume, 0); });
          since = performance.now();
        }
        if (mine !== turn) return null;
      }
      return hits;
    }

    async function update() {
      const mine = turn += 1;
      [back, next, go].forEach((box) => { box.disabled = true; });
      const asked = [...tests.values()].map((test) => test()).filter(Boolean);
      let rows = Array.from({ length: index.num }, (_, i) => i).filter((i) => asked.every((test) => test(i)));
      if (sort.value) {
        const [name, sign] = [fields[Number(sort.value.slice(1))], sort.value[0] === "-" ? -1 : 1];
        const lacks = (i) => Number(Boolean(name.numbers) && name.numbers[i] === null);  // last, whichever way it is sorted
        rows.sort((i, j) => lacks(i) - lacks(j) || sign * name.compare(i, j) || i - j);
      }
      if (search.value) {
        const hits = await seek(search.value, mine);
        if (!hits) return;
        rows = rows.filter((i) => hits[i]);
      }
      [found, page] = [rows, 0];
      await draw(mine);
    }

    function wait() {
      clearTimeout(timer);
      timer = setTimeout(update, 200);
    }

    function move(to) {
      page = to;
      draw(turn += 1);
      root.scrollIntoView();
    }

    function addFilter(field) {
      const [controls, test] = field.control(wait);
      const chip = make("div", "chip", make("b", "", field.name), ...controls);
      const close = make("button", "", "Remove");
      Object.assign(close, { type: "button" });
      close.addEventListener("click", () => {
        tests.delete(chip);
        chip.remove();
        update();
      });
      chip.append(close);
      tests.set(chip, test);
      chips.append(chip);
    }

    fields.forEach((field, at) => {
      add.add(new Option(field.name, String(at)));
      sort.add(new Option(`${field.name}, lowest first`, `+${at}`));
      sort.add(new Option(`${field.name}, highest first`, `-${at}`));
    });
    add.addEventListener("input", () => {
      addFilter(fields[Number(add.value)]);
      add.value = "";
    });
    [search, where, sort].forEach((box) => box.addEventListener("input", wait));
    back.addEventListener("click", () => move(page - 1));
    next.addEventListener("click", () => move(page + 1));
    go.addEventListener("change", () => move(Number(go.value) - 1));
    await update();
    root.dataset.ready = "yes";
  }

  document.querySelectorAll("[data-browser]").forEach((root) => {
    if ("DecompressionStream" in window) browse(root);
    else root.querySelector("[data-role=status]").textContent = "This list needs a browser of 2023 or later.";
  });
})();
