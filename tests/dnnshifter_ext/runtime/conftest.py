"""What the tests of the runtime share."""

import _socket
import socket

import pytest


@pytest.fixture
def loopback(hermetic, monkeypatch):
    """Connections within this machine are allowed."""
    refuse = socket.socket.connect

    def connect(self, address):
        if isinstance(address, tuple) and address[0] == '127.0.0.1':
            return _socket.socket.connect(self, address)
        return refuse(self, address)

    monkeypatch.setattr(socket.socket, 'connect', connect)
