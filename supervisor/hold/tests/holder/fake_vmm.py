#!/usr/bin/env python3
"""A VMM without a guest: the API, the events and the serial socket of Cloud Hypervisor, as far as the
holder's tests need them. `--fake WORD` changes its manners: see the uses of `has`."""
import json, os, socket, sys, threading, time

args = sys.argv[1:]
option = lambda name: args[args.index(name) + 1].split("=", 1)[1]
has = lambda word: word in args
api, events = option("--api-socket"), open(option("--event-monitor"), "w")
serial_path = os.path.join(os.path.dirname(api), "serial")
state = None


def event(source, name, properties=None):
    record = {"timestamp": {"secs": 0, "nanos": 1}, "source": source, "event": name, "properties": properties}
    events.write(json.dumps(record, indent=2) + "\n\n")
    events.flush()


def serial():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(serial_path)
    listener.listen(1)
    while True:
        client, _ = listener.accept()
        client.sendall(b"guest is up\n")
        if has("flood"):
            client.sendall(b"".join(b"%019d\n" % n for n in range(80000)))
        while data := client.recv(4096):
            client.sendall(b"echo " + data)


def answer(call):
    global state
    if call == "vmm.ping":
        return 200, {"version": "53.0.0", "pid": os.getpid()}
    if call == "vm.info":
        return (200, {"state": state, "config": {}}) if state else (404, ["VM is not created"])
    if call == "vm.create":
        state = "Created"
    elif call == "vm.boot":
        state = "Running"
        threading.Thread(target=serial, daemon=True).start()
        event("vm", "booted")
    elif call == "vm.power-button" and not has("deaf"):
        state = "Created"
        event("vm", "shutdown")
    elif call == "vm.shutdown":
        if has("stubborn"):
            return 500, ["Error from API", "The VM could not shutdown"]
        state = "Created"
    elif call == "vmm.shutdown" and has("stubborn"):
        time.sleep(1000)
    return 204, None


print("fake vmm", os.environ.get("DROVER_VM_ID"), sorted(os.environ), file=sys.stderr, flush=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(api)
listener.listen(10)
event("vmm", "starting")
while True:
    client, _ = listener.accept()
    request = client.recv(65536).decode()
    call = request.split(" ")[1].rsplit("/", 1)[1] if request else "nothing"
    code, body = answer(call)
    text = json.dumps(body) if body is not None else ""
    head = f"HTTP/1.1 {code} \r\nContent-Length: {len(text)}\r\n\r\n" if text else f"HTTP/1.1 {code} \r\n\r\n"
    try:
        client.sendall((head + text).encode())
    except OSError:
        pass  # whoever asked has stopped waiting
    client.close()
    if call == "vmm.shutdown":
        sys.exit(0)
