"""An OpenAI-like chat server that says what it is told to, one answer after another, as tool calls of `bash`."""

import http.server
import json
import threading


class ScriptedModel:
    def __init__(self, commands):
        self.commands, self.asked = list(commands), []
        model = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number = len(model.asked)
                model.asked.append(body["messages"])
                call = {"id": f"call-{number}", "type": "function", "function": {
                    "name": "bash", "arguments": json.dumps({"command": model.commands[number]})}}
                answer = json.dumps({
                    "id": f"chat-{number}", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
                        "role": "assistant", "content": f"Step {number}.", "tool_calls": [call]}}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
