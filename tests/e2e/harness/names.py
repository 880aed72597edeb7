"""A DNS server whose answers a test decides, and which remembers what it was asked."""

import socket
import struct
import threading
import time

from .namespaces import enter

A, CNAME, TXT, AAAA, HTTPS = 1, 5, 16, 28, 65
TYPES = {A: "A", 2: "NS", CNAME: "CNAME", 10: "NULL", 15: "MX", TXT: "TXT", AAAA: "AAAA", 33: "SRV", 64: "SVCB", HTTPS: "HTTPS", 255: "ANY"}
NO_ERROR, NO_SUCH_NAME = 0, 3


class Names:
    """Serves on a UDP and a TCP socket until closed.

    `records`: addresses by name, `*.name` for all below it; a list, or a function of how often the name was asked for,
    counted from 0, that gives one. A text that is no address is an alias.
    """

    def __init__(self, udp, tcp):
        self.udp, self.tcp = udp, tcp
        self.records = {}
        #: `(name, type, transport)` as asked, the name as it was spelled.
        self.asked = []
        #: The same as bytes.
        self.questions = []
        self.times = {}
        self.silent = set()
        #: Asked for what is not in `records`; bytes to bytes.
        self.elsewhere = None
        self.lock = threading.Lock()
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def close(self):
        for each in (self.udp, self.tcp):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()

    def asked_for(self, text):
        """Questions whose name holds this text, whatever its case."""
        return [each for each in list(self.asked) if text.lower() in each[0].lower()]

    def _serve_udp(self):
        while True:
            try:
                question, asker = self.udp.recvfrom(4096)
            except OSError:
                return
            answer = self._answer(question, "udp")
            if answer:
                self.udp.sendto(answer, asker)

    def _serve_tcp(self):
        while True:
            try:
                client, _ = self.tcp.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_client, args=(client,), daemon=True).start()

    def _serve_client(self, client):
        with client:
            client.settimeout(10)
            try:
                while head := client.recv(2, socket.MSG_WAITALL):
                    question = client.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
                    answer = self._answer(question, "tcp")
                    if not answer:
                        return
                    client.sendall(struct.pack("!H", len(answer)) + answer)
            except (OSError, struct.error):
                pass

    def _answer(self, question, transport):
        try:
            name, kind, end = read_question(question)
        except (IndexError, struct.error, UnicodeDecodeError):
            return None
        with self.lock:
            self.asked.append((name, TYPES.get(kind, str(kind)), transport))
            self.questions.append(question)
            plain = name.lower().rstrip(".")
            found = self._find(plain)
            if plain in self.silent:
                return None
            if found is None and self.elsewhere:
                elsewhere = self.elsewhere
            else:
                elsewhere = None
                if callable(found):
                    count = self.times.get((plain, kind), 0)
                    self.times[plain, kind] = count + 1
                    found = found(count)
        if elsewhere:
            return elsewhere(question)
        return make_answer(question[:2], question[12:end], kind, found)

    def _find(self, name):
        if name in self.records:
            return self.records[name]
        labels = name.split(".")
        for i in range(1, len(labels)):
            wild = "*." + ".".join(labels[i:])
            if wild in self.records:
                return self.records[wild]
        return None


def read_question(question):
    """The name, the type, and where the question ends."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode("latin-1"))
        at += 1 + length
    kind, _ = struct.unpack("!HH", question[at + 1 : at + 5])
    return ".".join(labels), kind, at + 5


def write_name(name):
    return b"".join(bytes([len(label)]) + label for label in name.encode("latin-1").split(b".") if label) + b"\0"


def make_answer(number, question, kind, found):
    records, owner = [], b"\xc0\x0c"
    for each in found or []:
        is_address = all(part.isdigit() for part in each.split(".")) and each.count(".") == 3
        if is_address and kind == A:
            records.append((owner, A, socket.inet_aton(each)))
        elif not is_address and ":" not in each and kind in (A, CNAME):
            # What follows belongs to the name it is an alias of.
            records.append((owner, CNAME, write_name(each)))
            owner = write_name(each)
        elif ":" in each and kind == AAAA:
            records.append((owner, AAAA, socket.inet_pton(socket.AF_INET6, each)))
    if found and kind == TXT:
        records.append((owner, TXT, b"\x05hello"))
    code = NO_SUCH_NAME if found is None else NO_ERROR
    body = b"".join(name + struct.pack("!HHIH", type_, 1, 1, len(data)) + data for name, type_, data in records)
    return number + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0) + question + body


def ask_host(question):
    """What this host's own resolver says, for what the small internet does not have."""
    for line in open("/etc/resolv.conf").read().splitlines():
        if line.startswith("nameserver"):
            with socket.socket(socket.AF_INET6 if ":" in line else socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.settimeout(3)
                try:
                    asker.sendto(question, (line.split()[1], 53))
                    return asker.recv(4096)
                except OSError:
                    continue
    return None


def listener_in(namespace, address, port):
    """A TCP socket of a network namespace that listens."""
    return sockets_in(namespace, address, port)[1]


def sockets_in(namespace, address, port=53):
    """A UDP and a TCP socket of a network namespace, made by a thread that goes there for it."""
    made, trouble = [], []

    def make():
        try:
            enter(f"/run/netns/{namespace}")
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((address, port))
            made.extend([udp, socket.create_server((address, port))])
        except OSError as error:
            trouble.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]
    return made


def wait_quiet(names, seconds=0.1):
    """Until nothing was asked for that long."""
    while True:
        before = len(names.asked)
        time.sleep(seconds)
        if len(names.asked) == before:
            return
