"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const narrow = innerWidth < 700;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // ---------------------------------------------------------------- theme
  const system = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const themed = () => {
    toggle.textContent = isDark() ? "Light theme" : "Dark theme";
    redraw();
  };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  system.addEventListener("change", themed);

  // ---------------------------------------------------------------- charts, drawn when they become visible
  const config = () => {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const font = getComputedStyle(document.body).fontFamily;
    const series = [1, 2, 3, 4, 5, 6, 7].map((i) => color(`series-${i}`));
    const text = { labelColor: color("soft"), titleColor: color("soft"), labelFont: font, titleFont: font };
    return {
      aria: false,
      background: "transparent",
      font,
      view: { stroke: null },
      axis: { ...text, gridColor: color("grid"), domainColor: color("line"), tickColor: color("line"),
        labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8 },
      legend: { ...text, orient: "top", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, symbolSize: 80,
        symbolBaseFillColor: color("soft"), symbolBaseStrokeColor: color("soft"), columns: narrow ? 2 : 7 },
      line: { color: color("series-5") },
      rule: { color: color("soft") },
      tick: { color: color("soft") },
      text: { color: color("ink") },
      range: { category: series },
    };
  };
  const drawn = new Set();
  const draw = (place) => {
    const spec = data.charts[place.dataset.chart];
    if (!spec || !window.vegaEmbed) return Promise.resolve();
    const style = getComputedStyle(root);
    const copy = JSON.parse(JSON.stringify(spec), (key, value) =>
      (key === "range" && typeof value[0] === "string" ? value.map((name) => style.getPropertyValue(name).trim()) : value));
    if (place.dataset.rows) copy.data = { values: data.class_rows[place.dataset.chart][place.dataset.rows] };
    drawn.add(place);
    return vegaEmbed(place, copy, { ast: true, actions: false, renderer: "svg", config: config(), tooltip: { theme: "custom" } })
      .then(() => {
        place.querySelector("svg").setAttribute("aria-hidden", "true"); // the container has a role and a name
        place.dataset.drawn = isDark() ? "dark" : "light";
      });
  };
  const redraw = () => Promise.all([...drawn].map(draw));
  const sight = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) if (isIntersecting && !drawn.has(target)) draw(target);
  }, { rootMargin: "300px" });
  all(".chart").forEach((place) => sight.observe(place));
  const everything = document.getElementById("print");
  everything.hidden = false;
  everything.addEventListener("click", () => { root.dataset.print = "all"; print(); });
  addEventListener("afterprint", () => { delete root.dataset.print; });
  addEventListener("beforeprint", () => {
    all("details").forEach((details) => { details.open = true; });
    all(".chart").forEach((place) => drawn.has(place) || draw(place));
  });

  // ---------------------------------------------------------------- tables in the HTML: sort, fold
  const keyOf = (cell) => {
    const number = cell.querySelector("data");
    if (number) return Number(number.value);
    return cell.querySelector(".none") ? null : cell.textContent.trim().toLowerCase();
  };
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null || b === null) return a === null ? 1 : -1;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  };
  const headed = (table, sorted) => all("thead th", table).forEach((head, column) => {
    const button = head.querySelector(".sort");
    if (button) button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sorted(column, down);
    });
  });
  const ordered = (rows, key, down) => rows
    .map((row) => [key(row), row])
    .sort(([a], [b]) => (a === null || b === null ? compare(a, b) : down ? compare(b, a) : compare(a, b)))
    .map(([, row]) => row);
  all("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    const most = Number(table.dataset.fold || Infinity);
    let folded = body.rows.length > most;
    const fold = () => [...body.rows].forEach((row, i) => { row.hidden = folded && i >= most; });
    headed(table, (column, down) => {
      body.append(...ordered([...body.rows], (row) => keyOf(row.cells[column]), down));
      fold();
    });
    if (folded) {
      const button = make("button", { type: "button", className: "fold" });
      const say = () => {
        button.textContent = folded ? `Show all ${body.rows.length.toLocaleString("en")}` : `Show ${most} only`;
        button.setAttribute("aria-expanded", String(!folded));
        fold();
      };
      button.addEventListener("click", () => { folded = !folded; say(); });
      table.closest(".scroll").after(button);
      say();
    }
  });

  // ---------------------------------------------------------------- trees: which leaves are failure leaves
  const validity = document.getElementById("validity");
  if (validity) {
    const { delta, tau } = validity.elements;
    const leaves = all(".leaf[data-excess]");
    const shown = new Set(leaves.map((leaf) => leaf.closest(".card"))).size;
    const judge = () => {
      delta.nextElementSibling.textContent = `${Math.round(100 * delta.value)} points`;
      tau.nextElementSibling.textContent = `${Math.round(100 * tau.value)} %`;
      let valid = 0;
      const trees = new Set();
      leaves.forEach((leaf) => {
        const holds = Number(leaf.dataset.excess) > Number(delta.value) && Number(leaf.dataset.coverage) > Number(tau.value);
        leaf.querySelector(".valid").hidden = !holds;
        if (holds) { valid += 1; trees.add(leaf.closest(".card")); }
      });
      validity.querySelector("[aria-live]").textContent = `${valid} of ${leaves.length} leaves, in ${trees.size} of ${shown} trees below.`;
    };
    validity.hidden = false;
    validity.addEventListener("input", judge);
    validity.addEventListener("reset", () => setTimeout(judge));
    validity.addEventListener("submit", (event) => event.preventDefault());
  }

  // ---------------------------------------------------------------- trees: what a split looks at, from its feature below
  all(".glimpse").forEach((place) => {
    const title = document.getElementById(`feature-${place.dataset.feature}-h`);
    const strips = title ? all(".strip", title.closest("article")) : [];
    if (strips.length > 1) place.append(...all("img", strips[1]).slice(0, 4).map((image) => make("img", { src: image.src, alt: image.alt })));
  });

  // ---------------------------------------------------------------- classes: search, statistics
  all("form.find").forEach((form) => {
    const table = document.getElementById(form.dataset.of);
    const [box, more] = [form.querySelector("input"), form.querySelector(".statistics")];
    const search = () => {
      const text = box.value.trim().toLowerCase();
      all("tbody tr", table).forEach((row) => { row.classList.toggle("missed", text !== "" && !row.textContent.toLowerCase().includes(text)); });
      table.classList.toggle("searched", text !== "");
    };
    box.addEventListener("input", search);
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => {
      const wide = table.classList.toggle("wide");
      more.setAttribute("aria-expanded", String(wide));
      more.textContent = wide ? "Hide the statistics" : "Show the statistics";
    });
    form.hidden = false;
  });

  // ---------------------------------------------------------------- lightbox, selection
  const chosen = new Map();
  const box = document.getElementById("lightbox");
  const bar = document.getElementById("selection");
  let seen = null;
  const shots = (image) => all("img[data-id]", image.closest(".tiles, .seen-failures") || image.closest("tbody")).filter((one) => one.checkVisibility());
  const refresh = () => {
    all("img[data-id]").forEach((image) => image.classList.toggle("chosen", chosen.has(image.dataset.id)));
    bar.hidden = chosen.size === 0;
    bar.querySelector("[role=status]").textContent = `${chosen.size} ${chosen.size === 1 ? "image" : "images"} selected`;
    if (seen) box.querySelector("[data-do=select]").textContent = chosen.has(seen.dataset.id) ? "Remove from the selection" : "Select";
  };
  const record = ({ id, label, predicted, failed }) => ({ id: Number(id), label: label || null, prediction: predicted || null,
    failed: failed === undefined ? null : failed === "1" });
  const enlarge = (image) => {
    seen = image;
    const { id, label, predicted, failed, value, confidence, rule } = image.dataset;
    box.querySelector(".large").replaceChildren(make("img", { src: image.src, alt: image.alt, className: image.className }));
    const facts = [["Id", id], ["Label", label], ["Predicted", predicted],
      ["Outcome", failed === undefined ? "" : failed === "1" ? "\u2717 wrong" : "\u2713 right"], ["Decision value", value],
      ["Flagged", value === undefined ? "" : value.startsWith("\u2212") ? "flagged" : "no"], ["Confidence in the label", confidence], ["Leaf", rule]];
    box.querySelector("dl").replaceChildren(...facts.filter(([, text]) => text).map(([name, text]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, text))));
    box.querySelector("[data-do=slice]").hidden = !label || !document.getElementById("filters");
    refresh();
    if (!box.open) box.showModal();
  };
  const step = (by) => {
    const row = shots(seen);
    enlarge(row[(row.indexOf(seen) + by + row.length) % row.length]);
  };
  document.addEventListener("click", (event) => {
    const image = event.target.closest("img[data-id]");
    if (image) enlarge(image);
    else if (event.target === box) box.close();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });
  all("[data-step]", box).forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.step))));
  box.querySelector("[data-do=select]").addEventListener("click", () => {
    if (chosen.has(seen.dataset.id)) chosen.delete(seen.dataset.id);
    else chosen.set(seen.dataset.id, record(seen.dataset));
    refresh();
  });
  box.querySelector("[data-do=slice]").addEventListener("click", () => {
    const form = document.getElementById("filters");
    const index = data.examples.names.indexOf(seen.dataset.label);
    form.reset();
    setTimeout(() => {
      form.elements.label.value = String(index);
      form.elements.failed.value = "1";
      if ((seen.dataset.value || "").startsWith("\u2212")) form.elements.flagged.value = "1";
      form.dispatchEvent(new Event("input"));
      box.close();
      document.getElementById("examples").scrollIntoView();
    });
  });
  const save = (name, text, type) => {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const quoted = (text) => `"${String(text === null ? "" : text).replaceAll('"', '""')}"`;
  const acts = {
    copy: () => {
      const area = make("textarea", { value: [...chosen.keys()].join("\n") });
      document.body.append(area);
      area.select();
      document.execCommand("copy"); // a page opened from a file has no other clipboard
      area.remove();
      bar.querySelector("[role=status]").textContent = `${chosen.size} ids copied`;
    },
    csv: () => save("selected.csv", ["id,label,prediction,failed", ...[...chosen.values()].map((one) =>
      [one.id, quoted(one.label), quoted(one.prediction), one.failed].join(","))].join("\n"), "text/csv"),
    json: () => save("selected.json", JSON.stringify([...chosen.values()], null, 2), "application/json"),
    clear: () => { chosen.clear(); refresh(); },
  };
  all(".review").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => {
      const { ids, label } = button.dataset;
      ids.split(" ").forEach((id) => chosen.set(id, record({ id, label })));
      refresh();
    });
  });
  all("[data-do]", bar).forEach((button) => button.addEventListener("click", acts[button.dataset.do]));

  // ---------------------------------------------------------------- examples: filter, sort, page
  const browse = document.getElementById("browse");
  if (browse) {
    const { rows, images, side, names, rules, columns } = data.examples;
    const at = Object.fromEntries(columns.map((name, i) => [name, i]));
    const ruleOf = (row) => (rules[row[at.label]] || [])[row[at.leaf]] || "";
    const failed = (row) => row[at.failed] === 1;
    const predicted = (row) => (row[at.prediction] === null ? "\u2013" : names[row[at.prediction]]);
    const flagged = (row) => row[at.value] !== null && row[at.value] < 0;
    const keys = [null, (r) => r[at.id], (r) => names[r[at.label]], (r) => predicted(r), (r) => (failed(r) ? "wrong" : "right"),
      (r) => r[at.confidence], (r) => r[at.value], (r) => (r[at.value] === null ? null : Number(flagged(r))), (r) => ruleOf(r) || null];
    const form = document.getElementById("filters");
    const pager = document.getElementById("pager");
    const size = pager.querySelector("select");
    const [back, next] = all("[data-turn]", pager);
    let order = rows, shown = rows, page = 0, only = null;

    for (const field of ["label", "prediction"]) {
      const used = [...new Set(rows.map((row) => row[at[field]]))].filter((index) => index !== null).sort((a, b) => compare(names[a], names[b]));
      form.elements[field].append(...used.map((index) => new Option(names[index], index)));
    }
    // verdicts have neither predictions nor confidence
    const absent = ["prediction", "confidence"].filter((field) => rows.every((row) => row[at[field]] === null));
    browse.classList.add(...absent.map((field) => `no-${field}`));
    form.elements.prediction.closest("label").hidden = absent.includes("prediction");
    const minus = (text) => text.replace("-", "\u2212");
    const cell = (label, ...children) => {
      const element = make("td", {}, ...children);
      element.dataset.label = label;
      return element;
    };
    const number = (label, row, column, text) => {
      const element = make("data", { value: String(row[at[column]]) }, minus(text));
      element.dataset.of = `examples/${{ id: "ids", value: "values", confidence: "confidence" }[column]}/${row[at.row]}`;
      return Object.assign(cell(label, element), { className: "number" });
    };
    const shot = (row, alt) => {
      const image = make("img", { src: images[row[at.image]], alt, className: (failed(row) ? "is-wrong" : "is-right") + (side < 64 ? " small" : "") });
      const [value, confidence] = [row[at.value], row[at.confidence]];
      Object.assign(image.dataset, { id: row[at.id], label: names[row[at.label]], predicted: predicted(row), failed: row[at.failed] });
      if (value !== null) image.dataset.value = minus((value > 0 ? "+" : "") + value.toFixed(2));
      if (confidence !== null) image.dataset.confidence = `${(100 * confidence).toFixed(1)}\u202f%`;
      if (ruleOf(row)) image.dataset.rule = ruleOf(row);
      return image;
    };
    const failures = new Map();
    rows.filter(failed).forEach((row) => failures.set(row[at.label], [...(failures.get(row[at.label]) || []), row].slice(0, 3)));
    all("td.seen-failures").forEach((place) => {
      const mine = failures.get(Number(place.dataset.class)) || [];
      place.append(...mine.map((row) => shot(row, `Example ${row[at.id]}, predicted ${predicted(row)}`)));
    });
    const line = (row) => {
      const [label, prediction, wrong] = [names[row[at.label]], predicted(row), failed(row)];
      const outcome = row[at.prediction] === null ? (wrong ? "wrong" : "right") : `predicted ${prediction}`;
      const alt = `Example ${row[at.id]}, ${label}, ${outcome}`;
      const value = row[at.value];
      return make("tr", {},
        make("td", { className: "seen" }, shot(row, alt)),
        number("Id", row, "id", String(row[at.id])),
        cell("Label", label),
        cell("Prediction", prediction),
        cell("Outcome", make("span", { className: `badge ${wrong ? "bad" : "found"}` }, wrong ? "wrong" : "right")),
        row[at.confidence] === null ? cell("Confidence", "\u2013") : number("Confidence", row, "confidence", `${(100 * row[at.confidence]).toFixed(1)}\u202f%`),
        value === null ? cell("Decision value", "\u2013") : number("Decision value", row, "value", (value > 0 ? "+" : "") + value.toFixed(2)),
        cell("Flagged", value === null ? "\u2013" : flagged(row) ? "flagged" : "no"),
        Object.assign(cell("Leaf", ruleOf(row) || "\u2013"), { className: "leaf-rule" }));
    };
    const turn = () => {
      const per = Number(size.value);
      const pages = Math.max(Math.ceil(shown.length / per), 1);
      page = Math.min(Math.max(page, 0), pages - 1);
      browse.tBodies[0].replaceChildren(...shown.slice(page * per, (page + 1) * per).map(line));
      document.getElementById("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
      document.getElementById("place").textContent = `Page ${page + 1} of ${pages}`;
      back.disabled = page === 0;
      next.disabled = page === pages - 1;
    };
    const filter = () => {
      const want = Object.fromEntries(new FormData(form));
      const text = want.text.trim().toLowerCase();
      shown = order.filter((row) => (only === null || only.has(row)) &&
        (want.label === "" || row[at.label] === Number(want.label)) &&
        (want.prediction === "" || row[at.prediction] === Number(want.prediction)) &&
        (want.failed === "" || failed(row) === (want.failed === "1")) &&
        (want.flagged === "" || flagged(row) === (want.flagged === "1")) &&
        (text === "" || `${row[at.id]}\n${names[row[at.label]]}\n${predicted(row)}\n${ruleOf(row)}`.toLowerCase().includes(text)));
      page = 0;
      turn();
    };
    form.addEventListener("input", filter);
    form.addEventListener("reset", () => { only = null; setTimeout(filter); });
    form.addEventListener("submit", (event) => event.preventDefault());
    size.addEventListener("change", () => { page = 0; turn(); });
    for (const [button, step] of [[back, -1], [next, 1]]) button.addEventListener("click", () => { page += step; turn(); });
    headed(browse, (column, down) => { order = ordered(rows, keys[column], down); filter(); });
    if (narrow) size.value = "10";

    // the images of a part of the examples: below the matrix and the map
    const most = 36;
    const pick = (place, mine, words) => {
      const wrong = mine.filter(failed).length;
      const [select, list] = ["Select all", "Show in the table"].map((text) => make("button", { type: "button" }, text));
      select.addEventListener("click", () => {
        mine.forEach((row) => chosen.set(String(row[at.id]), record({ id: row[at.id], label: names[row[at.label]], predicted: predicted(row), failed: String(row[at.failed]) })));
        refresh();
      });
      list.addEventListener("click", () => {
        form.reset();
        setTimeout(() => { only = new Set(mine); filter(); document.getElementById("examples").scrollIntoView(); });
      });
      const more = mine.length > most ? `, of which ${most} are shown` : "";
      place.replaceChildren(make("p", {}, `${words}: ${mine.length} ${mine.length === 1 ? "image" : "images"}, ${wrong} wrong${more}`,
        ...(mine.length ? [select, list] : [])), make("ul", { className: "tiles" }, ...mine.slice(0, most).map((row) =>
        make("li", { className: "tile" }, shot(row, `Example ${row[at.id]}, ${names[row[at.label]]}, predicted ${predicted(row)}`),
          make("span", {}, `${failed(row) ? "\u2717" : "\u2713"} ${names[row[at.label]]}${failed(row) ? ` \u2192 ${predicted(row)}` : ""}`)))));
      if (!mine.length) place.lastChild.remove();
      refresh();
    };
    all(".cell").forEach((cell) => cell.addEventListener("click", () => {
      all(".cell[aria-pressed]").forEach((other) => other.removeAttribute("aria-pressed"));
      cell.setAttribute("aria-pressed", "true");
      const [label, prediction] = [Number(cell.dataset.label), Number(cell.dataset.prediction)];
      pick(document.querySelector(".picked[data-of=matrix]"), rows.filter((row) => row[at.label] === label && row[at.prediction] === prediction),
        `${names[label]} predicted as ${names[prediction]}, among the examples of this page`);
    }));

    // ---------------------------------------------------------------- map of the images
    const map = document.getElementById("map-view");
    if (map) {
      const drawing = (tag, properties) => {
        const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
        Object.entries(properties).forEach(([name, value]) => element.setAttribute(name, value));
        return element;
      };
      const [across, down, least] = [1600, 1000, 60];
      const options = document.getElementById("map-form");
      const marks = rows.filter((row) => row[at.x] !== null).map((row) => {
        const [x, y] = [row[at.x] * across / 1000, down - row[at.y]];
        return { row, x, y, mark: drawing("path", { d: failed(row) ? `M${x - 8} ${y - 8}l16 16m0-16l-16 16` : `M${x - 7} ${y}a7 7 0 1 0 14 0a7 7 0 1 0-14 0` }) };
      });
      const frame = drawing("rect", { width: 0, height: 0, visibility: "hidden" });
      map.append(...marks.filter(({ row }) => !failed(row)).map(({ mark }) => mark), ...marks.filter(({ row }) => failed(row)).map(({ mark }) => mark), frame);
      const labels = [...new Set(marks.map(({ row }) => row[at.label]))].sort((a, b) => compare(names[a], names[b]));
      options.elements.label.append(...labels.map((index) => new Option(names[index], index)));
      const largest = Math.max(...marks.map(({ row }) => Math.abs(row[at.value] || 0)), 1e-9);
      const legend = (name) => document.querySelector(`.legend ${name}`);
      legend(".low").textContent = minus((-largest).toFixed(2));
      legend(".high").textContent = `+${largest.toFixed(2)}`;
      let area = null;
      const shows = ({ row }) => options.elements.label.value === "" || row[at.label] === Number(options.elements.label.value);
      const paint = () => {
        const byValue = options.elements.colour.value === "value";
        map.classList.toggle("by-value", byValue);
        all(".legend").forEach((line) => { line.hidden = (line.dataset.colour === "value") !== byValue; });
        marks.forEach((one) => {
          const value = one.row[at.value];
          const side = value === null ? "unknown" : value < 0 ? "low" : "high";
          one.mark.setAttribute("class", `${failed(one.row) ? "wrong" : "right"} ${side} ${shows(one) ? "" : "aside"}`);
          one.mark.style.opacity = !byValue ? 0.8 : value === null ? 0.4 : 0.25 + 0.75 * Math.abs(value) / largest;
        });
      };
      const frameTo = (x, y, width, height) => {
        const [left, top] = [Math.min(Math.max(x, -20), across + 20 - width), Math.min(Math.max(y, -20), down + 20 - height)];
        area = { x: left, y: top, width, height };
        Object.entries({ ...area, visibility: "visible" }).forEach(([name, value]) => frame.setAttribute(name, value));
      };
      const look = () => {
        if (!area) return;
        const inside = marks.filter((one) => shows(one) && one.x >= area.x && one.x <= area.x + area.width && one.y >= area.y && one.y <= area.y + area.height);
        pick(document.querySelector(".picked[data-of=map]"), inside.map(({ row }) => row), "In the frame");
      };
      const placeOf = (event) => {
        const seenAt = map.getBoundingClientRect();
        return [(event.clientX - seenAt.left) / seenAt.width * (across + 40) - 20, (event.clientY - seenAt.top) / seenAt.height * (down + 40) - 20];
      };
      let from = null;
      map.addEventListener("pointerdown", (event) => { from = placeOf(event); map.setPointerCapture(event.pointerId); });
      map.addEventListener("pointermove", (event) => {
        if (!from) return;
        const to = placeOf(event);
        frameTo(Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(from[0] - to[0]), Math.abs(from[1] - to[1]));
      });
      map.addEventListener("pointerup", (event) => {
        if (!from) return;
        const to = placeOf(event);
        if (Math.hypot(from[0] - to[0], from[1] - to[1]) < 15) frameTo(to[0] - least, to[1] - least, 2 * least, 2 * least); // a tap
        from = null;
        look();
      });
      map.addEventListener("pointercancel", () => { from = null; });
      map.addEventListener("keydown", (event) => {
        const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
        if (!x && !y) return;
        event.preventDefault();
        const now = area || { x: across / 2 - 2 * least, y: down / 2 - 2 * least, width: 4 * least, height: 4 * least };
        if (event.shiftKey) frameTo(now.x, now.y, Math.min(Math.max(now.width + x * least, least), across), Math.min(Math.max(now.height + y * least, least), down));
        else frameTo(now.x + x * least, now.y + y * least, now.width, now.height);
        look();
      });
      options.addEventListener("input", () => { paint(); look(); });
      options.addEventListener("submit", (event) => event.preventDefault());
      paint();
    }
    refresh();
    form.hidden = pager.hidden = false;
    filter();
  }

  // ---------------------------------------------------------------- small screens start with one open card
  if (narrow) all("details.card[open]").slice(1).forEach((card) => { card.open = false; });

  // ---------------------------------------------------------------- a link to a closed card opens it
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) if (at instanceof HTMLDetailsElement) at.open = true;
    const part = target && target.querySelector(":scope > details.part");
    if (part) part.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
  themed();
})();
