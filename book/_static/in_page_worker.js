// Python of a page, in a thread of its own: the page can stop it, and it can reach
// nothing of the page. It gets an answer and tells what is printed, as text.
// The folder of its files is this address's query.
const folder = new URL(`${location.search.slice(1)}/`, location)
const tell = (message) => postMessage(message)

// A file, counted while it comes. The page's limit on scripts leaves no other way to
// load the two scripts than import, which counts when they are there.
async function download(name, told, arrived) {
  const packed = `${name}-gzip` in told.bytes
  const file = packed ? `${name}-gzip` : name
  const response = await fetch(new URL(file, folder))
  if (!response.ok) throw new Error(`${file}: ${response.status}`)
  const reader = response.body.getReader()
  let body = new ReadableStream({
    async pull(stream) {
      try {
        const { done, value } = await reader.read()
        if (done) return stream.close()
        arrived(value.byteLength)
        stream.enqueue(value)
      } catch (error) {
        tell({ failed: `${file}: ${error.message}` }) // Pyodide would wait for ever
        stream.error(error)
      }
    },
  })
  if (packed) body = body.pipeThrough(new DecompressionStream("gzip"))
  const type = name.endsWith(".wasm") ? "application/wasm" : "application/octet-stream"
  return new Response(body, { headers: { "Content-Type": type } })
}

async function load(script, told, arrived) {
  const module = await import(new URL(script, folder))
  arrived(told.bytes[script])
  return module
}

async function start() {
  const { default: told } = await import(new URL("files.js", folder))
  const total = Object.values(told.bytes).reduce((sum, bytes) => sum + bytes)
  let bytes = 0
  const arrived = (more) => tell({ bytes: (bytes += more), total })

  // All files at once, and each to whoever asks for it: Pyodide would ask in turn, for
  // the package after the interpreter has started.
  const names = Object.keys(told.bytes)
    .filter((name) => !/\.m?js$/.test(name))
    .map((name) => name.replace("-gzip", ""))
  const files = new Map(names.map((name) => [name, download(name, told, arrived)]))
  const scripts = ["pyodide.mjs", "pyodide.asm.js"]
  const [{ loadPyodide }] = await Promise.all([
    ...scripts.map((script) => load(script, told, arrived)),
    ...files.values(), // one that is missing ends it here, with its name
  ])
  const elsewhere = fetch
  self.fetch = (address, options) =>
    files.get(String(address.url ?? address).split("/").pop())
    ?? elsewhere(address, options)

  const indexURL = folder.href
  const python = await loadPyodide({ indexURL, packageBaseUrl: indexURL })
  await python.loadPackage("numpy", { messageCallback: () => {} })
  const sources = await (await files.get("normbook.zip")).arrayBuffer()
  python.unpackArchive(sources, "zip", { extractDir: "/home/pyodide" })
  const { run } = python.pyimport("run_answer")
  return ({ code, key }) => run(code, told.before[key] ?? "", (text) => tell({ text }))
}

const started = start()
started.catch((error) => tell({ failed: error.message }))
onmessage = async ({ data }) => {
  const run = await started
  const { default: told } = await import(new URL("files.js", folder))
  tell({ running: true, limit: told.limit, late: told.late })
  run(data)
  tell({ done: true })
}
