"""What a group needs of every network, as code of a rank of three: it has `transport`, whose
channels are open, and `rank` and `world`."""

CALLS = '''
for number in range(100):
    pending = transport.begin_and("ends", [number | 1 << 63, 7 << rank, (1 << 64) - 1])
    assert pending.wait(60) == [number | 1 << 63, 4, (1 << 64) - 1]
    own = bytes([rank]) * (rank * 100_000 + number)
    assert transport.gather(own, None, "ends") == [
        bytes([other]) * (other * 100_000 + number) for other in range(world)]
# Begun at once, and waited for later, with a bound: rank 2 comes when the others have given up.
deadline = time.monotonic() + 60
while rank == 2 and transport.posted("late/0")[:2] != [0, 1]:
    assert time.monotonic() < deadline, transport.posted("late/0")
    time.sleep(0.01)
began = time.monotonic()
late = transport.begin_and("calls", [6 + rank])
if rank != 2:
    assert late.wait(0.3) is None and time.monotonic() - began >= 0.3
transport.post("late/0", rank)
assert late.wait(60) == [0]
transport.post("ends/3", rank + 5)
transport.gather(b"", 60)
assert transport.posted("ends/3") == [5, 6, 7] and transport.posted("ends/4") == [None] * 3
'''
