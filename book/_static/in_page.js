// Code that a reader can alter and run on the page: an editor, what it prints, what is
// kept. A classic script, so that a page opened from a disk can say that it cannot.
{
  const HERE = document.currentScript.src
  const PREFIX = "normbook-answer:"

  // -------------------------------------------------------------- what is kept

  // A browser may refuse to store; then an answer lasts as long as its page.
  const store = (act) => {
    try {
      return act(localStorage)
    } catch {
      return null
    }
  }
  const kept = (key) => store((storage) => storage.getItem(PREFIX + key))
  const keep = (key, code) => store((storage) => storage.setItem(PREFIX + key, code))
  const forget = (key) => store((storage) => storage.removeItem(PREFIX + key))
  const forgetAll = () =>
    store((storage) => Object.keys(storage)
      .filter((key) => key.startsWith(PREFIX))
      .forEach((key) => storage.removeItem(key)))

  // -------------------------------------------------------------- colours

  // The classes are those of Pygments, so that the page's own colours apply.
  const WORDS = {
    k: "and as assert async await break class continue def del elif else except finally "
      + "for from global if import in is lambda nonlocal not or pass raise return try "
      + "while with yield",
    kc: "True False None",
    nb: "abs all any bool callable dict enumerate filter float getattr int isinstance "
      + "len list map max min print range repr reversed round set sorted str sum super "
      + "tuple type zip",
  }
  const CLASSES = new Map(Object.entries(WORDS).flatMap(([name, words]) =>
    words.split(" ").map((word) => [word, name])))
  const TOKEN = new RegExp([
    /(?<c1>#[^\n]*)/,
    /(?<s2>[rbfu]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))/,
    /(?<word>[\p{L}_][\p{L}\p{N}_]*)/,
    /(?<mi>\d[\d_.]*(?:e[+-]?\d+)?)/,
    /(?<o>[-+*/%@&|^~<>=!]+|\.\.\.)/,
  ].map(({ source }) => source).join("|"), "giu")

  function coloured(code) {
    const pieces = []
    let end = 0
    let before = ""
    for (const { 0: text, index, groups } of code.matchAll(TOKEN)) {
      pieces.push(code.slice(end, index))
      end = index + text.length
      const [name] = Object.entries(groups).find(([, part]) => part !== undefined)
      const defines = name === "word" && ["def", "class"].includes(before)
      const kind = defines ? "nf" : name === "word" ? CLASSES.get(text) : name
      const piece = document.createElement("span")
      piece.className = kind ?? "n"
      piece.textContent = text
      pieces.push(piece)
      before = text
    }
    // A last line that is empty has a height as well.
    return [...pieces, `${code.slice(end)}\n`]
  }

  // -------------------------------------------------------------- the editor

  const INDENT = "    "

  // A text area over its own text in colours: the browser's caret, keys, undo and
  // screen reader stay as they are.
  function makeEditor(code, label, describedBy) {
    const box = document.createElement("div")
    box.className = "in-page-editor highlight"
    const shown = document.createElement("div") // the theme puts each pre on the Tab key's way
    shown.className = "in-page-shown"
    shown.ariaHidden = "true"
    const area = document.createElement("textarea")
    Object.assign(area, { value: code, ariaLabel: label, spellcheck: false, rows: 1 })
    area.setAttribute("aria-describedby", describedBy)
    for (const no of ["autocomplete", "autocorrect", "autocapitalize"]) {
      area.setAttribute(no, "off")
    }
    area.wrap = "off"
    const draw = () => shown.replaceChildren(...coloured(area.value))
    area.addEventListener("input", draw)
    draw()
    box.append(shown, area)
    return { box, area }
  }

  // The browser's own command, because what is set by a script cannot be undone.
  function replace(area, from, to, text) {
    area.focus()
    area.setSelectionRange(from, to)
    if (text === area.value.slice(from, to)) return
    const done = document.execCommand(text ? "insertText" : "delete", false, text)
    if (done) return
    area.setRangeText(text, from, to, "end")
    area.dispatchEvent(new Event("input"))
  }

  // Indent or dedent the lines of the selection; without one, indent at the caret.
  function indent(area, back) {
    const { value, selectionStart: from, selectionEnd: to } = area
    const start = value.lastIndexOf("\n", from - 1) + 1
    if (from === to && !back) {
      const here = INDENT.slice((from - start) % INDENT.length)
      return replace(area, from, to, here)
    }
    const block = value.slice(start, to)
    const moved = back ? block.replace(/^ {1,4}/gm, "") : block.replace(/^(?=.)/gm, INDENT)
    replace(area, start, to, moved)
    const first = moved.split("\n", 1)[0].length - block.split("\n", 1)[0].length
    area.setSelectionRange(Math.max(start, from + first), to + moved.length - block.length)
  }

  // A new line begins below the one before, and further in after a colon.
  function breakLine(area) {
    const { value, selectionStart: from, selectionEnd: to } = area
    const line = value.slice(value.lastIndexOf("\n", from - 1) + 1, from)
    const deeper = /:\s*(#.*)?$/.test(line) ? INDENT : ""
    replace(area, from, to, `\n${/^ */.exec(line)[0]}${deeper}`)
  }

  function listen(area, run) {
    let leaving = false // Escape was pressed: the next Tab moves on
    area.addEventListener("keydown", (event) => {
      const plain = !event.ctrlKey && !event.altKey && !event.metaKey
      if (event.isComposing) return
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run()
      else if (event.key === "Tab" && plain && !leaving) indent(area, event.shiftKey)
      else if (event.key === "Enter" && plain && !event.shiftKey) breakLine(area)
      else {
        if (event.key !== "Shift") leaving = event.key === "Escape"
        return
      }
      leaving = false
      event.preventDefault()
    })
    area.addEventListener("focus", () => (leaving = false))
  }

  // -------------------------------------------------------------- Python

  const INSTEAD = "Use the page's notebook instead, or on your machine: make lab."
  const cannot = location.protocol === "file:"
    ? "From a disk no browser runs Python: serve the book with make serve, or read it "
      + "online."
    : typeof WebAssembly !== "object" || typeof Worker !== "function"
      || typeof DecompressionStream !== "function"
      ? `This browser cannot run Python: it has no WebAssembly. ${INSTEAD}`
      : ""

  // One Python a page. It is ended when it does not stop, and started anew.
  let worker = null
  let busy = false

  function end() {
    worker?.terminate()
    worker = null
  }

  // Run code; `on` has what to do with what is printed, with progress, and at the end.
  function runPython(folder, job, on) {
    let timer
    const finish = (fault) => {
      clearTimeout(timer)
      if (fault) end()
      on.finish(fault)
    }
    if (!worker) {
      const address = new URL(`in_page_worker.js?${folder}`, HERE)
      worker = new Worker(address, { type: "module" })
    }
    worker.onmessage = ({ data }) => {
      if (data.bytes) on.progress(data.bytes, data.total)
      if (data.text) on.text(data.text)
      if (data.running) {
        on.running()
        timer = setTimeout(() => finish({ late: data.late }), 1000 * data.limit)
      }
      if (data.done) finish()
      if (data.failed) finish({ failed: data.failed })
    }
    worker.onerror = (event) => {
      event.preventDefault()
      finish({ failed: event.message ?? "its files are not there" })
    }
    worker.postMessage(job)
  }

  // Which exercise was being checked: the first that the text has no verdict on.
  function nextChecked(code, text) {
    const names = [...code.matchAll(/^check\("([\w-]+)"/gm)].map(([, name]) => name)
    const name = names.find((one) => !text.includes(`${one} ✓`) && !text.includes(`${one} ✗`))
    return name ? `${name} ` : ""
  }

  // What a listing shows; what is hidden in it is for who copies it elsewhere.
  function codeOf(listing) {
    const copy = listing.cloneNode(true)
    copy.querySelectorAll("[hidden]").forEach((part) => part.remove())
    return copy.textContent.trimEnd()
  }

  // -------------------------------------------------------------- a cell

  function enliven(cell) {
    const bar = cell.querySelector(".in-page-bar")
    const button = (name) => bar.querySelector(`button[name="${name}"]`)
    const output = cell.querySelector(".cell_output pre")
    const input = cell.querySelector(".cell_input")
    if (!button("run")) return
    if (cannot) {
      bar.querySelector("p").textContent = cannot
      bar.querySelector(".in-page-note")?.remove()
      return
    }
    const progress = bar.querySelector(".in-page-progress")
    const choice = cell.querySelector("select")
    const starters = [...cell.querySelectorAll(".cell_input pre")]
      .map(codeOf)
    const starter = () => starters[choice?.selectedIndex ?? 0]
    const key = () => bar.dataset.key + (choice ? `-${choice.value}` : "")
    output.parentElement.role = "status" // what is printed is read out

    const says = choice ? "Your program" : "Your answer"
    const { box, area } = makeEditor(kept(key()) ?? starter(), says, "in-page-note")
    input.hidden = true
    bar.before(box)
    if (kept(key()) !== null) output.textContent = ""

    const save = () =>
      area.value === starter() ? forget(key()) : keep(key(), area.value)
    area.addEventListener("input", save)
    const show = (code) => {
      area.value = code
      area.dispatchEvent(new Event("input"))
    }

    function run() {
      if (busy) return
      busy = true
      bar.classList.add("is-busy")
      let text = ""
      let drawn = 0
      const draw = () => {
        output.textContent = text
        // What scrolls must be reached by keyboard too.
        output.tabIndex = output.scrollHeight > output.clientHeight ? 0 : -1
      }
      const print = (more) => {
        text += more
        cancelAnimationFrame(drawn)
        drawn = requestAnimationFrame(draw)
      }
      const code = area.value
      output.textContent = ""
      progress.textContent = worker ? "Running" : "Loading Python"
      const megabytes = (bytes) => (bytes / 1e6).toFixed(1)
      runPython(bar.dataset.python, { code, key: bar.dataset.key }, {
        text: print,
        progress(bytes, total) {
          const all = bytes >= total ? ", starting it" : ""
          progress.textContent =
            `Loading Python: ${megabytes(bytes)} of ${megabytes(total)} MB${all}`
        },
        running: () => (progress.textContent = "Running"),
        finish(fault) {
          if (fault?.late) print(`${nextChecked(code, text)}✗ ${fault.late}\n`)
          if (fault?.failed) {
            print(`Python did not start (${fault.failed}). Is the connection gone? `
              + `Click again. ${INSTEAD}\n`)
          }
          if (!text) print("It ran, and printed nothing.\n")
          progress.textContent = ""
          bar.classList.remove("is-busy")
          busy = false
        },
      })
    }

    listen(area, run)
    button("run").addEventListener("click", run)
    button("again").addEventListener("click", () => {
      replace(area, 0, area.value.length, starter())
      output.textContent = ""
    })
    button("forget")?.addEventListener("click", () => {
      forgetAll()
      document.dispatchEvent(new Event("normbook-forgotten"))
      progress.textContent = "Forgotten"
    })
    document.addEventListener("normbook-forgotten", () => {
      show(starter())
      output.textContent = ""
    })
    button("solution")?.addEventListener("click", () => {
      const fold = cell.nextElementSibling?.querySelector("details")
      fold.open = !fold.open
      if (fold.open) fold.scrollIntoView({ block: "nearest" })
    })
    choice?.addEventListener("change", () => {
      show(kept(key()) ?? starter())
      output.textContent = ""
    })
  }

  document.querySelectorAll(".in-page").forEach(enliven)
}
