// Three numbers, to touch: move the third, and the standardized three move on their
// circle; ε pulls them in; of a gradient two projections leave what the circle lets
// through. The picture is Python's; here it is moved.

const QUIET = 400 // ms without a change before a screen reader is told

// What becomes of x and of dy: normbook.core, for one set.
export const three = (x, dy, eps) => {
  const mean = (values) => values.reduce((a, b) => a + b) / values.length
  const center = (values) => {
    const mu = mean(values)
    return values.map((value) => value - mu)
  }
  const deviations = center(x)
  const rstd = 1 / Math.sqrt(mean(deviations.map((d) => d * d)) + eps)
  const x_hat = deviations.map((d) => d * rstd)
  const along = mean(dy.map((d, i) => d * x_hat[i]))
  const centered = center(dy)
  const projected = center(dy.map((d, i) => d - x_hat[i] * along))
  return { x, x_hat, dy, centered, projected, dx: projected.map((d) => d * rstd) }
}

const takeOver = (root) => {
  const facts = JSON.parse(root.querySelector("script[type='application/json']").textContent)
  const [low, high] = facts.range
  const text = (number, digits = 3) => number.toFixed(digits).replace(/^-(0\.0+)$/, "$1").replace("-", "−")
  const onPaper = (v) => facts.plane.map((axis) => axis.reduce((sum, a, i) => sum + a * v[i], 0))

  const slider = (label, attributes) => {
    const [name, input] = [document.createElement("label"), document.createElement("input")]
    for (const [key, value] of Object.entries({ type: "range", ...attributes })) input.setAttribute(key, value)
    const said = document.createElement("span")
    name.append(label, said, input)
    return { name, input, said }
  }
  const third = slider("x₃ = ", { min: low, max: high, step: 0.1, value: facts.numbers[2] })
  const epsilon = slider("ε = ", { min: 0, max: facts.epsilons.length - 1, step: 1, value: 0 })
  const box = root.querySelector(".sliders")
  box.replaceChildren(third.name, epsilon.name)
  const [moves, spoken] = [".moves", ".spoken"].map((name) => root.querySelector(name))

  const svg = root.querySelector("svg")
  const point = svg.querySelector(".point")
  const set = (element, values) => {
    for (const [key, value] of Object.entries(values)) element.setAttribute(key, value.toFixed(2))
  }

  let timer = null
  let touched = false // nothing is said while the page loads
  const show = () => {
    const eps = facts.epsilons[epsilon.input.value]
    const x = [...facts.numbers.slice(0, 2), Number(third.input.value)]
    const steps = three(x, facts.gradient, eps)
    const [right, up] = onPaper(steps.x_hat)
    set(point, { cx: right, cy: -up })
    for (const name of ["centered", "projected"]) {
      const [dx, dy] = onPaper(steps[name])
      set(svg.querySelector(`line.${name}`), { x1: right, y1: -up, x2: right + dx, y2: -up - dy })
    }
    for (const [name, values] of Object.entries(steps)) {
      root.querySelectorAll(`tr.${name} data`).forEach((cell, i) => {
        cell.value = String(values[i])
        cell.textContent = text(values[i])
      })
    }
    third.said.textContent = text(x[2], 1)
    epsilon.said.textContent = eps
    epsilon.input.setAttribute("aria-valuetext", `ε = ${eps}`)
    const radius = Math.hypot(...steps.x_hat)
    moves.textContent = `x̂ lies ${text(radius)} from 0${eps ? `: ε pulls it in from √3 = ${text(Math.sqrt(3))}` : ", on the circle of radius √3"}. `
      + `Largest of the three: ${text(Math.max(...steps.x_hat.map(Math.abs)))}, never over √2 = ${text(Math.SQRT2)}.`
    clearTimeout(timer)
    if (touched) timer = setTimeout(() => {
      spoken.textContent = `x̂ is ${steps.x_hat.map((v) => text(v)).join(", ")}; dx is ${steps.dx.map((v) => text(v)).join(", ")}. ${moves.textContent}`
    }, QUIET)
  }
  let frame = 0
  const soon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0
      show()
    })
  }
  box.addEventListener("input", soon)

  // The point itself can be dragged round: to the x₃ whose x̂ lies in that direction.
  // With x₁ and x₂ fixed, the plane's first coordinate is fixed before rescaling.
  const drag = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse())
    const [[a, b], [c, d, e]] = facts.plane
    const first = a * facts.numbers[0] + b * facts.numbers[1]
    if (Math.sign(at.x) !== Math.sign(first)) return
    const second = (-at.y / at.x) * first
    const x3 = (second - c * facts.numbers[0] - d * facts.numbers[1]) / e
    third.input.value = Math.max(low, Math.min(high, x3))
    soon()
  }
  point.addEventListener("pointerdown", (event) => {
    event.preventDefault()
    point.setPointerCapture(event.pointerId)
  })
  point.addEventListener("pointermove", (event) => {
    if (point.hasPointerCapture(event.pointerId)) drag(event)
  })
  show()
  touched = true
}

// In a fold nothing is made before it is opened.
for (const root of document.querySelectorAll(".three-numbers")) {
  const fold = root.closest("details")
  if (!fold || fold.open) takeOver(root)
  else fold.addEventListener("toggle", () => takeOver(root), { once: true })
}
