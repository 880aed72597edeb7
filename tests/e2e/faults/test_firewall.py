"""Programs beside the server that write firewall rules too."""

import hashlib
from pathlib import Path

import pytest

from harness import namespaces, settings
from harness.namespaces import PORT, neighbour, run
from harness.server import Server
from harness.waiting import wait_for


def table_of(server):
    return "warren_" + hashlib.sha256(server.data_dir.encode()).hexdigest()[:6]


def has_table(server):
    return f"table inet {table_of(server)}" in run("nft", "list", "tables").splitlines()


def reaches(box, address):
    return box.run(f"curl -sS -o /dev/null --max-time {int(3 * settings.PATIENCE)} http://{address}:{PORT}/")["exitCode"] == 0


def is_shut(box, address):
    """What is dropped is waited for in vain; once it is open, an answer takes milliseconds."""
    return box.run(f"curl -sS -o /dev/null --max-time 1 http://{address}:{PORT}/")["exitCode"] != 0


def test_rules_that_another_program_has_removed_are_in_force_again():
    """`nft flush ruleset` begins most nftables.conf; here it is the table of this server alone."""
    with Server() as server, server.api() as api, neighbour("198.51.100.225", "198.51.100.226") as theirs:
        free, shut = api.create(), api.create(egress={"mode": "none"})
        assert reaches(free, theirs) and is_shut(shut, theirs)
        for what in ("table inet {}", "chain inet {} pass"):
            if what.startswith("chain"):
                run("nft", "flush", *what.format(table_of(server)).split())
                rules = lambda: "drop" in run("nft", "list", "chain", "inet", table_of(server), "pass")
            else:
                run("nft", "delete", *what.format(table_of(server)).split())
                rules = lambda: has_table(server)
            wait_for(rules, "the rules are in force again", 10)
            wait_for(lambda: reaches(free, theirs), "sandboxes reach the outside again", 10)
            assert is_shut(shut, theirs), "what a sandbox may reach is as before"
        assert "they are in force again" in server.log()
        # At once, before the server may have heard of it.
        run("nft", "delete", "table", "inet", table_of(server))
        closed = api.create(egress={"mode": "none"})
        assert is_shut(closed, theirs)
        for box in (free, shut, closed):
            box.kill()


@pytest.mark.parametrize("when", ["before", "after"])
def test_iptables_that_drop_by_default_let_sandboxes_through(when):
    """Docker sets FORWARD to DROP, ufw INPUT as well. What their rules refuse is refused."""

    def shut():
        for command in (
            "iptables -A INPUT -i lo -j ACCEPT",
            "iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "iptables -A FORWARD -d 198.51.100.234 -j REJECT",
            "iptables -P FORWARD DROP",
            "iptables -P INPUT DROP",
        ):
            run(*command.split())

    rules = lambda: run("iptables", "-S").count("-j ACCEPT")
    with namespaces.host_of_its_own():
        with neighbour("198.51.100.229", "198.51.100.230") as theirs, neighbour("198.51.100.233", "198.51.100.234") as refused:
            if when == "before":
                shut()
            with Server() as server, server.api() as api, api.create() as box:
                if when == "after":
                    assert reaches(box, theirs) and reaches(box, refused)
                    shut()
                    wait_for(lambda: rules() == 5, "what sandboxes need is accepted", 10)
                wait_for(lambda: reaches(box, theirs), "it reaches the outside", 10)
                forwarding = Path("/proc/sys/net/ipv4/ip_forward")
                forwarding.write_text("0")
                wait_for(lambda: forwarding.read_text() == "1\n", "packets are passed on again", 15)
                assert is_shut(box, refused), "the rules of others come first"
                # The metadata and the gateway are on the host, and connections to them are turned there.
                assert box.run(f"curl -sS --max-time {int(5 * settings.PATIENCE)} http://169.254.169.254/v1/limits")["exitCode"] == 0
                assert rules() == 5, "nothing is added twice"
                server.kill()
                server.start("--stop-sandboxes")
                server.stop(30)
                assert rules() == 2, "what was added goes with the node"
                server.start()
