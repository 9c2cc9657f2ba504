"""Byte streams of the real network, and the sending and receiving of frames over any byte stream."""
