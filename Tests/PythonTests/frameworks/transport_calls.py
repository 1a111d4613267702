"""What a group needs of every network, as code of a rank of three: it has `transport`, whose
channels are open, and `rank` and `world`."""

CALLS = '''
for number in range(100):
    pending = transport.begin_and("ends", [number | 1 << 63, 7 << rank, (1 << 64) - 1])
    assert pending.wait(60) == [number | 1 << 63, 4, (1 << 64) - 1]
    own = bytes([rank]) * (rank * 100_000 + number)
    assert transport.gather(own, None, "ends") == [
        bytes([other]) * (other * 100_000 + number) for other in range(world)]
if rank == 2:
    time.sleep(2)
# Begun at once, and waited for later, with a bound.
began = time.monotonic()
late = transport.begin_and("calls", [6 + rank])
assert time.monotonic() - began < 0.5
if rank != 2:
    assert late.wait(0.3) is None and 0.3 <= time.monotonic() - began < 1.9
assert late.wait(60) == [0]
transport.post("ends/3", rank + 5)
transport.gather(b"", 60)
assert transport.posted("ends/3") == [5, 6, 7] and transport.posted("ends/4") == [None] * 3
'''
