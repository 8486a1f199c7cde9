"""Decoding: sessions, backends, drafters, speculation."""
