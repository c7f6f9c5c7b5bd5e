// The picture of the sets, to touch: point at a value and its set lights up with its
// mean and standard deviation; change it and see which outputs move. What shares a set,
// what torch refuses, names and colours come from the page, where Python wrote them;
// here is only the arithmetic. Without this script the picture stays as it was.

const LIMIT = 99 // of a value: two digits fit a cell
const PIXELS = 4 // of a drag, for a step of 1
const QUIET = 400 // ms without a change before a screen reader is told

// ------------------------------------------------------------------ the arithmetic

// Which set each value is in, from the view of the block in which a set is whole axes.
export const membership = ({ view, axes }) => {
  const size = view.reduce((a, b) => a * b, 1)
  const sets = new Int32Array(size)
  for (let i = 0; i < size; i += 1) {
    let [rest, stride] = [i, 1]
    for (let axis = view.length - 1; axis >= 0; axis -= 1) {
      const at = rest % view[axis]
      rest = (rest - at) / view[axis]
      if (axes.includes(axis)) continue
      sets[i] += at * stride
      stride *= view[axis]
    }
  }
  return sets
}

// m, mean and variance of every set (the mean square where nothing is centered), and
// the outputs. What `real` leaves out counts nowhere and comes out as 0.
export const normalize = (x, sets, real, centered, eps) => {
  const number = Math.max(...sets) + 1
  const add = (term) => {
    const sums = new Float64Array(number)
    for (let i = 0; i < x.length; i += 1) if (real[i]) sums[sets[i]] += term(i)
    return sums
  }
  const m = add(() => 1)
  const mean = centered ? add((i) => x[i]).map((sum, s) => sum / m[s]) : new Float64Array(number)
  const square = add((i) => (x[i] - mean[sets[i]]) ** 2).map((sum, s) => sum / m[s])
  return { m, mean, square, y: outputs(x, sets, real, mean, square, eps) }
}

const outputs = (x, sets, real, mean, square, eps) =>
  Float64Array.from(x, (value, i) =>
    real[i] ? (value - mean[sets[i]]) / Math.sqrt(square[sets[i]] + eps) : 0)

// ------------------------------------------------------------------ the figure

const sign = (text) => text.replace("-", "−")
const short = (y) => sign(y.toFixed(Math.abs(y) < 9.95 ? 1 : 0)).replace(/^−(0\.0)$/, "$1")
const element = (name, attributes = {}, ...inside) => {
  const made = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.append(...inside)
  return made
}
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`

const KINDS = {
  images: ["N × C × H × W", "a row a sample, a column a channel of 2 × 2"],
  tokens: ["N × T × C", "a block a sample, a row a token, a column a channel"],
  features: ["N × C", "a row a sample, a column a channel"],
}
const MODES = { training: "training", evaluation: "evaluation" }
const PADDING = { none: "none", counted: "counted", masked: "masked" }

const takeOver = (root) => {
  const facts = JSON.parse(root.querySelector("script[type='application/json']").textContent)
  const stage = root.querySelector(".stage")
  const [N, C] = [facts.shapes.features.N, facts.shapes.features.C]
  const P = facts.values.length / N / C
  const all = Float64Array.from(facts.values) // N × C × P, whatever is shown of it

  // ---- what can be chosen

  const radios = (name, legend, options, chosen) => {
    const field = element("fieldset", { class: `pick ${name}` }, element("legend", {}, legend))
    for (const [value, label] of Object.entries(options)) {
      const input = element("input", { type: "radio", name: `sets-${name}`, value })
      input.checked = value === chosen
      field.append(element("label", {}, input, label))
    }
    return field
  }
  const labels = Object.fromEntries(Object.entries(KINDS).map(([kind, [name]]) => [kind, name]))
  const sizes = Object.fromEntries(Array.from({ length: N }, (_, i) => [i + 1, i + 1]))
  // Digits are keys in their order; the batch begins whole.
  const picks = {
    kind: radios("kind", "Shape", labels, "images"),
    batch: radios("batch", "Batch N", sizes, String(N)),
    mode: radios("mode", "Mode", MODES, "training"),
    padding: radios("padding", "Padding", PADDING, "none"),
  }
  const groups = stage.querySelector(".groups")
  groups.classList.add("pick")
  groups.querySelector("legend").textContent = "G"
  const value = (field) => field.querySelector("input:checked").value

  // ---- what is shown

  const say = element("p", { class: "say" })
  const grids = [element("div", { role: "grid", class: "grid" }), element("div", { class: "grid", "aria-hidden": "true" })]
  const [titleX, titleY] = [element("p", { class: "title" }), element("p", { class: "title" })]
  const facts_ = element("dl", { class: "numbers" })
  const [moves, spoken] = [element("p", { class: "moves" }), element("p", { class: "spoken", "aria-live": "polite" })]
  const button = (text, label) => element("button", { type: "button", "aria-label": label }, text)
  const [less, more, again] = [button("−", "Lower this value"), button("+", "Raise this value"), button("Start again", "Start again")]
  const tools = element("p", { class: "tools" }, less, more, again)
  const explorer = element("div", { class: "explorer" },
    element("div", { class: "picks" }, picks.kind, picks.batch, picks.mode, picks.padding, groups),
    say,
    element("div", { class: "grids" }, element("div", {}, titleX, grids[0]), element("div", {}, titleY, grids[1])),
    element("div", { class: "readout" }, facts_, tools), moves, spoken)
  stage.replaceChildren(explorer)

  // ---- state

  let selected = 0 // an index of the block that is shown
  let hover = null // likewise, while the mouse is there
  let pointed = 0 // the one of the two that is looked at
  let changed = null // {cell, from}: the value changed last, and what it was
  let shown = { cells: [[], []] } // what is drawn: kind, n, positions, cells, index of places
  let now = null // what was computed of it

  // Row and column of a value: samples below each other, or sequences two by two.
  const place = (kind, i) => {
    const positions = shown.positions
    const [n, c, p] = [Math.floor(i / C / positions), Math.floor(i / positions) % C, i % positions]
    const { H, W, T } = facts.shapes[kind]
    if (kind === "images") return [n * H + Math.floor(p / W), c * W + (p % W)]
    if (kind === "tokens") return [Math.floor(n / 2) * T + p, (n % 2) * C + c]
    return [n, c]
  }
  const name = (i) => {
    const positions = shown.positions
    const words = [`sample ${Math.floor(i / C / positions) + 1}`, `channel ${(Math.floor(i / positions) % C) + 1}`]
    if (positions > 1) words.push(`${shown.kind === "tokens" ? "token" : "position"} ${(i % positions) + 1}`)
    return words.join(", ")
  }
  const inAll = (i) => (shown.positions > 1 ? i : i * P)

  const draw = (kind, n) => {
    const positions = kind === "features" ? 1 : P
    shown = { kind, n, positions, cells: [[], []], at: new Map() }
    const length = n * C * positions
    const rows = []
    for (let i = 0; i < length; i += 1) {
      const [row, column] = place(kind, i)
      ;(rows[row] ??= []).push([column, i])
      shown.at.set(`${row} ${column}`, i)
    }
    rows.forEach((row) => row.sort(([a], [b]) => a - b))
    const { W, H, T } = facts.shapes[kind]
    const wide = kind === "images" ? W : kind === "tokens" ? C : 0
    const high = kind === "images" ? H : kind === "tokens" ? T : 0
    grids.forEach((grid, which) => {
      grid.className = `grid ${kind}`
      grid.replaceChildren(...rows.map((row, r) => {
        const line = element("div", which ? {} : { role: "row" })
        line.className = high && r && r % high === 0 ? "line apart" : "line"
        for (const [column, i] of row) {
          const cell = element("div", which ? {} : { role: "gridcell", tabindex: -1 })
          cell.className = wide && column && column % wide === 0 ? "cell apart" : "cell"
          cell.dataset.cell = i
          shown.cells[which][i] = cell
          line.append(cell)
        }
        return line
      }))
    })
    titleX.textContent = `x: ${KINDS[kind][1]}`
    titleY.textContent = "outputs (γ = 1, β = 0), underlined if moved"
    grids[0].setAttribute("aria-label", `Values: ${KINDS[kind][1]}. Arrows move, plus and minus change a value.`)
    if (selected >= length) selected = 0
    hover = null
    if (changed && changed.cell >= length) changed = null
  }

  // ---- from state to page

  const padded = (i) => {
    if (shown.kind !== "tokens" || value(picks.padding) === "none") return false
    return i % shown.positions >= facts.lengths[Math.floor(i / C / shown.positions)]
  }

  const compute = () => {
    const key = root.querySelector("input[name='sets']:checked").value
    const method = facts.methods[key]
    const G = method.grouped ? value(groups) : 1
    const known = facts.cases[`${shown.kind} ${shown.n} ${key} ${G}`]
    const evaluates = method.tracks && value(picks.mode) === "evaluation"
    const length = shown.n * C * shown.positions
    const pads = Array.from({ length }, (_, i) => padded(i))
    const real = pads.map((pad) => !(pad && value(picks.padding) === "masked"))
    const x = Float64Array.from({ length }, (_, i) => (pads[i] ? 0 : all[inAll(i)]))
    const old = Float64Array.from(x)
    if (changed) old[changed.cell] = changed.from
    const state = { key, method, G, known, evaluates, pads, real, x, shares: [] }
    if (!known.view || (known.torch && !evaluates)) return state
    if (evaluates) {
      const { mean, var: square } = facts.running[shown.kind]
      const channel = Int32Array.from({ length }, (_, i) => Math.floor(i / shown.positions) % C)
      Object.assign(state, { sets: channel, mean, square, y: outputs(x, channel, real, mean, square, facts.eps) })
      state.before = outputs(old, channel, real, mean, square, facts.eps)
      state.shares = Array.from({ length }, (_, i) => i === pointed)
    } else {
      const sets = membership(known)
      Object.assign(state, { sets }, normalize(x, sets, real, method.centered, facts.eps))
      state.before = normalize(old, sets, real, method.centered, facts.eps).y
      state.shares = Array.from(sets, (set, i) => real[i] && real[pointed] && set === sets[pointed])
    }
    state.moved = state.y.map((y, i) => Math.abs(y - state.before[i]) > 1e-9)
    return state
  }

  const write = (cell, text, exact) => {
    if (cell.textContent !== text) cell.textContent = text
    if (cell.dataset.value !== exact) cell.dataset.value = exact
  }
  const paint = (cell, states) => {
    for (const [state, on] of Object.entries(states)) cell.classList.toggle(state, !!on)
  }

  const told = () => {
    const { method, known, evaluates, G, sets, m } = now
    if (!known.view) return `${method.name} cannot take this shape. normbook: ${known.refused}`
    if (evaluates) return "Evaluation: each channel has a mean and a standard deviation stored in training (here those of the first batch, its variance unbiased). No value shares statistics with another."
    if (known.torch) return `One value a set is its own mean. torch raises ${known.torch}`
    const kind = method.centered ? "mean and one variance" : "mean square"
    const same = known.same ? `, as in ${known.same}` : ""
    const size = m[sets[pointed]]
    const number = plural(m.length, "such set")
    let text = now.real[pointed]
      ? `The ${plural(size, "cell")} in colour share one ${kind}: all ${known.over} of ${known.of}${same}. The block has ${number}.`
      : "This is padding, and the mask leaves it out of every set: output 0."
    if (m.some((count) => count === 0)) text += " A set of padding alone is empty: normbook refuses this mask, which no other set needs."
    else if (known.refused) text = "The cell in colour is alone in its set and is its own mean. All outputs are 0 = β, whatever x is: torch says nothing, normbook raises."
    else if (value(picks.mode) === "evaluation") text += ` ${method.name} does the same in evaluation.`
    return text
  }

  const toldOfMoves = () => {
    if (!changed) return "Drag a value sideways, or press + and −, and see which outputs move."
    if (!now.y) return ""
    const which = [...now.moved.keys()].filter((i) => now.moved[i])
    const samples = [...new Set(which.map((i) => Math.floor(i / C / shown.positions) + 1))]
    const own = Math.floor(changed.cell / C / shown.positions) + 1
    const from = `${sign(String(changed.from))} → ${sign(String(now.x[changed.cell]))} in sample ${own}`
    const others = samples.filter((sample) => sample !== own)
    const where = others.length
      ? `, also in ${others.length === 1 ? "sample" : "samples"} ${others.join(", ")}`
      : which.length ? ", in that sample alone" : ""
    return `${from}: ${plural(which.length, "output")} moved${where}.`
  }

  const figures = () => {
    const { x, y, m, mean, square, sets, evaluates, method, real } = now
    const set = sets?.[pointed]
    const rows = [["x", x[pointed], 0]]
    if (y && real[pointed]) {
      if (!evaluates) rows.push(["m", m[set], 0])
      if (method.centered) rows.push([evaluates ? "stored mean" : "mean", mean[set], 3])
      const root = method.centered ? "standard deviation" : "root mean square"
      rows.push([evaluates ? `stored ${root}` : root, Math.sqrt(square[set]), 3])
    }
    if (y) rows.push(["output", y[pointed], 3])
    return rows
  }

  let timer = null
  let touched = false // nothing is said while the page loads
  const show = () => {
    pointed = hover ?? selected
    now = compute()
    groups.disabled = !now.method.grouped
    picks.padding.disabled = shown.kind !== "tokens"
    const { x, y, shares, pads, moved } = now
    for (let i = 0; i < x.length; i += 1) {
      const [cell, output] = [shown.cells[0][i], shown.cells[1][i]]
      const before = cell.dataset.value
      write(cell, sign(String(x[i])), String(x[i]))
      if (before !== cell.dataset.value) cell.setAttribute("aria-label", `${cell.textContent}, ${name(i)}`)
      write(output, y ? short(y[i]) : "", y ? String(y[i]) : "")
      cell.tabIndex = i === selected ? 0 : -1
      cell.setAttribute("aria-selected", i === selected)
      const states = { on: shares[i], pad: pads[i], here: i === pointed }
      paint(cell, { ...states, changed: changed?.cell === i })
      paint(output, { ...states, moved: changed && moved?.[i] })
    }
    say.className = `say is-${now.method.grouped ? `g${now.G}` : now.key.toLowerCase()}`
    say.textContent = told()
    const rows = figures()
    facts_.replaceChildren(...rows.map(([key, exact, digits]) =>
      element("div", {}, element("dt", {}, key),
        element("dd", {}, element("data", { value: exact }, sign(exact.toFixed(digits)))))))
    moves.textContent = toldOfMoves()
    less.disabled = more.disabled = pads[selected]
    clearTimeout(timer)
    if (touched) timer = setTimeout(() => {
      const numbers = rows.map(([key, exact, digits]) => `${key} ${sign(exact.toFixed(digits))}`)
      spoken.textContent = `${name(pointed)}: ${numbers.join(", ")}. ${changed ? moves.textContent : ""} ${say.textContent}`
    }, QUIET)
  }
  // A drag asks more often than a screen can show.
  let frame = 0
  const soon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0
      show()
    })
  }

  const look = (i) => {
    if (i === hover) return
    hover = i
    show()
  }
  const select = (i) => {
    selected = i
    hover = null
    show()
    shown.cells[0][i].focus({ preventScroll: true })
  }
  const change = (to, soonOnly) => {
    if (now.pads[selected]) return
    const at = inAll(selected)
    const next = Math.max(-LIMIT, Math.min(LIMIT, to))
    if (next === all[at]) return
    if (changed?.cell !== selected) changed = { cell: selected, from: all[at] }
    all[at] = next
    hover = null
    if (soonOnly) soon()
    else show()
  }

  // ---- pointer, keys, choices

  let drag = null
  const cellOf = ({ target }) => target.closest?.("[data-cell]")
  for (const grid of grids) {
    grid.addEventListener("pointerover", (event) => {
      const cell = cellOf(event)
      if (cell && !drag && event.pointerType === "mouse") look(Number(cell.dataset.cell))
    })
    grid.addEventListener("pointerleave", () => look(null))
    grid.addEventListener("pointerdown", (event) => {
      const cell = cellOf(event)
      if (!cell || event.button) return
      event.preventDefault()
      select(Number(cell.dataset.cell))
      if (grid !== grids[0]) return
      drag = { x: event.clientX, y: event.clientY, from: all[inAll(selected)], mouse: event.pointerType === "mouse" }
      grid.setPointerCapture(event.pointerId)
    })
    grid.addEventListener("pointermove", (event) => {
      if (!drag) return
      // A finger that moves up or down scrolls the page.
      const way = event.clientX - drag.x + (drag.mouse ? drag.y - event.clientY : 0)
      change(drag.from + Math.trunc(way / PIXELS), true)
    })
    for (const end of ["pointerup", "pointercancel"]) grid.addEventListener(end, () => (drag = null))
  }

  const STEPS = { "+": 1, "=": 1, "-": -1, "_": -1, "−": -1, PageUp: 10, PageDown: -10 }
  const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }
  grids[0].addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    if (event.key in STEPS) change(all[inAll(selected)] + STEPS[event.key])
    else if (event.key in ARROWS) {
      const [row, column] = place(shown.kind, selected)
      const [down, right] = ARROWS[event.key]
      const next = shown.at.get(`${row + down} ${column + right}`)
      if (next !== undefined) select(next)
    } else return
    event.preventDefault()
  })
  less.addEventListener("click", () => change(all[inAll(selected)] - 1))
  more.addEventListener("click", () => change(all[inAll(selected)] + 1))
  again.addEventListener("click", () => {
    all.set(facts.values)
    changed = null
    show()
  })
  root.addEventListener("change", () => {
    const [kind, n] = [value(picks.kind), Number(value(picks.batch))]
    if (kind !== shown.kind) changed = null
    if (kind !== shown.kind || n !== shown.n) draw(kind, n)
    show()
  })

  draw("images", N)
  show()
  touched = true
}

// In a fold nothing is made before it is opened.
for (const root of document.querySelectorAll(".sets")) {
  const fold = root.closest("details")
  if (!fold || fold.open) takeOver(root)
  else fold.addEventListener("toggle", () => takeOver(root), { once: true })
}
