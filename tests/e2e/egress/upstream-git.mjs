// Git over HTTP, by the program that git brings for it, spoken to as a web server does (CGI).
import { spawn } from "node:child_process";

export function git(request, response, folder, allowed) {
    if (!allowed) {
        response.writeHead(401, { "www-authenticate": 'Basic realm="git"' });
        return response.end();
    }
    const url = new URL(request.url, "http://git");
    const program = spawn("git", ["-c", "safe.directory=*", "-c", "http.receivepack=true", "http-backend"], {
        env: {
            PATH: process.env.PATH,
            HOME: folder,
            GIT_PROJECT_ROOT: `${folder}/git`,
            GIT_HTTP_EXPORT_ALL: "1",
            PATH_INFO: url.pathname.slice("/git".length),
            QUERY_STRING: url.search.slice(1),
            REQUEST_METHOD: request.method,
            CONTENT_TYPE: request.headers["content-type"] ?? "",
            CONTENT_LENGTH: request.headers["content-length"] ?? "",
            HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
            GIT_PROTOCOL: request.headers["git-protocol"] ?? "",
            REMOTE_USER: "tester",
            REMOTE_ADDR: "198.51.100.1",
        },
        stdio: ["pipe", "pipe", "ignore"],
    });
    program.stdin.on("error", () => {});
    request.pipe(program.stdin);
    let head = Buffer.alloc(0);
    let begun = false;
    program.stdout.on("data", (chunk) => {
        if (begun) return response.write(chunk);
        head = Buffer.concat([head, chunk]);
        const end = head.indexOf("\r\n\r\n");
        if (end < 0) return undefined;
        begun = true;
        for (const line of head.subarray(0, end).toString().split("\r\n")) {
            const [name, ...value] = line.split(": ");
            if (name.toLowerCase() === "status") response.statusCode = Number.parseInt(value[0], 10);
            else response.setHeader(name, value.join(": "));
        }
        return response.write(head.subarray(end + 4));
    });
    program.stdout.on("end", () => response.end());
    return undefined;
}
