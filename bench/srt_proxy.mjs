// srt's intercepting proxy as srt makes it, without the sandbox around it: host, method and path are checked, and one header is exchanged.
// Arguments: folder of srt's package, host, stand-in, key, PEM of the server's authority. Prints "PORT CA-FILE", and ends with its standard input.
import { readFileSync } from 'node:fs'
const [srt, host, placeholder, key, ca] = process.argv.slice(2)
const { createHttpProxyServer } = await import(`${srt}/dist/sandbox/http-proxy.js`)
const { createMitmCA, disposeMitmCA } = await import(`${srt}/dist/sandbox/mitm-ca.js`)
const mitmCA = createMitmCA({})
const server = createHttpProxyServer({
  mitmCA,
  filter: (_port, name) => name === host,
  filterRequest: async request => {
    const url = new URL(request.url)
    const allowed = url.hostname === host && ['GET', 'PUT'].includes(request.method) && url.pathname.startsWith('/v1/')
    return { action: allowed ? 'allow' : 'deny' }
  },
  mutateHeaders: headers => {
    if (headers['x-api-key'] === placeholder) headers['x-api-key'] = key
  },
  tlsTerminateUpstreamCA: readFileSync(ca, 'utf8'),
  lookupFor: () => (_name, options, done) => (options.all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4)),
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port, mitmCA.certPath))
process.stdin.resume()
process.stdin.on('end', () => disposeMitmCA(mitmCA).finally(() => process.exit(0)))
