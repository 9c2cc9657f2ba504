"""Keys, cipher, erasure coding and packs: pure functions over buffers, without trio, clock or randomness.

SPEC.md beside this file says what every byte is. Callers hand in all entropy; what takes long
(`pack.seal_pack`) touches no event loop and may run in a worker thread.
"""
