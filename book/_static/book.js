// What a page needs a script for, and reads without: the list of sections follows the
// reader, and on paper every answer is open.
document.addEventListener("DOMContentLoaded", () => {
  const list = document.querySelector("#pst-secondary-sidebar")
  if (list) {
    new MutationObserver(() => {
      const active = [...list.querySelectorAll(".nav-link.active")].pop()
      if (!active) return
      const pane = list.getBoundingClientRect()
      const entry = active.getBoundingClientRect()
      if (entry.top < pane.top || entry.bottom > pane.bottom) {
        list.scrollTop += entry.top - pane.top - pane.height / 3
      }
    }).observe(list, { subtree: true, attributeFilter: ["class"] })
  }

  // Of what was searched for, Sphinx marks every word of the page: hundreds of "norm".
  setTimeout(() => {
    const section = location.hash && document.getElementById(location.hash.slice(1))
    for (const word of document.querySelectorAll("span.highlighted")) {
      if (!section?.contains(word)) word.replaceWith(...word.childNodes)
    }
  }, 50)

  let opened = []
  addEventListener("beforeprint", () => {
    const answers = document.querySelectorAll("details.sd-dropdown:not([open])")
    opened = [...answers]
    opened.forEach((answer) => (answer.open = true))
  })
  addEventListener("afterprint", () => {
    opened.forEach((answer) => (answer.open = false))
  })
})
