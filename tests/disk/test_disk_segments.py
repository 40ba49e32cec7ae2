"""The log over a disk that forgets: power lost at every step, syncs that fail, and starts over again."""

import errno
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from lockd.disk.errors import DataDirError, DiskFullError
from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered, read_log, segment_name
from lockd.disk.segments import SegmentLog, open_log
from lockd.errors import CorruptData
from lockd.ids import InstanceId, NodeId
from tests.disk.memory import Fault, Inline, MemoryFiles, Operation, PowerLossError, SimulatedLog
from tests.disk.samples import (
    NODE,
    Model,
    draw_instance,
    draw_writes,
    hard_state,
    header,
    mark,
    run,
    segments_of,
    state_at,
    store,
)


def open_small(
    disk: MemoryFiles, draw: Callable[[], InstanceId] = draw_instance
) -> tuple[Recovered, SegmentLog]:
    return open_log(disk, node_id=NODE, draw_instance=draw, ahead=Inline(), segment_bytes=4096)


def work(disk: MemoryFiles, rng: random.Random, model: Model, groups: int) -> tuple[Model, Model]:
    """Open and write until the power goes: the model of what is durable, and with what was under way."""
    durable = under_way = model
    try:
        recovered, log = open_small(disk)
        assert model.matches(recovered)
        for group in range(groups):
            writes = draw_writes(rng, durable, group * 10, rng.randint(1, 3))
            under_way = durable.apply(writes)
            log.write(writes)
            durable = under_way
    except PowerLossError:
        pass
    return durable, under_way


def test_d1_d2_d3_power_lost_at_every_step_loses_nothing_that_was_durable() -> None:
    """Creation, writes, rotation and the start itself; then the same disk goes on and is cut again."""
    probe = MemoryFiles()
    work(probe, random.Random(1), Model(), 25)
    assert len(segments_of(probe)) > 4
    for step in range(probe.steps + 1):
        disk, model = MemoryFiles(), Model()
        rng = random.Random(1)
        disk.power_lasts = step
        for life in range(4):
            durable, under_way = work(disk, rng, model, 25)
            disk.lose_power(random.Random(f"{step}/{life}"))
            recovered, _ = open_small(disk)
            assert durable.matches(recovered) or under_way.matches(recovered), f"step {step}, life {life}"
            model = under_way if under_way.matches(recovered) else durable
            disk.power_lasts = rng.randrange(30)


def test_d3_a_start_that_is_cut_after_a_torn_write_still_recovers() -> None:
    """Every step of the start, with the write torn in many ways before it and after it."""
    for seed in range(60):
        disk = MemoryFiles()
        _, log = open_small(disk)
        log.write([LogWrite(1, hard_state(1), run(1, b"kept"))])
        before = Model().apply([LogWrite(1, hard_state(1), run(1, b"kept"))])
        torn = LogWrite(2, hard_state(2), run(2, bytes(1500)))
        disk.power_lasts = 0
        with pytest.raises(PowerLossError):
            log.write([torn])
        disk.lose_power(random.Random(seed))
        landed = not before.matches(read_log(segments_of(disk)).recovered)
        for step in range(8):
            disk.power_lasts = step
            with suppress(PowerLossError):
                open_small(disk)
            disk.lose_power(random.Random(seed * 100 + step))
            recovered, _ = open_small(disk)
            assert (before.apply([torn]) if landed else before).matches(recovered), (
                f"seed {seed}, step {step}"
            )


def test_d3_a_torn_tail_is_erased_durably_before_the_next_write() -> None:
    """Sectors of the torn batch must not come back under a later one."""
    seen_torn = 0
    for seed in range(40):
        disk = MemoryFiles()
        open_small(disk)[1].write([LogWrite(1, append=run(1, b"kept"))])
        _, log = open_small(disk)
        disk.power_lasts = 0
        with pytest.raises(PowerLossError):
            log.write([LogWrite(2, append=run(2, b"\xff" * 1800))])
        disk.lose_power(random.Random(seed))
        seen_torn += read_log(segments_of(disk)).torn
        open_small(disk)
        image = read_log(segments_of(disk))
        assert not image.torn
        disk.lose_power(random.Random(seed))
        assert read_log(segments_of(disk)) == image
    assert seen_torn > 5


def test_d1_what_a_start_reports_is_durable_although_the_sync_before_it_failed() -> None:
    """After a failed fsync Linux shows bytes that are not on disk, and calls the pages clean."""
    disk = MemoryFiles()
    _, log = open_small(disk)
    write = LogWrite(1, hard_state(1, 1), run(1, b"vote"))
    disk.syncs_fail = True
    with pytest.raises(OSError, match="Input/output"):
        log.write([write])
    disk.syncs_fail = False

    recovered, _ = open_small(disk)
    assert Model().apply([write]).matches(recovered)
    for seed in range(20):
        disk.lose_power(random.Random(seed))
        assert open_small(disk)[0] == recovered


def test_d1_what_was_not_synced_may_be_lost() -> None:
    """The twin forgets: without that the tests above would show nothing."""
    entries = set()
    for seed in range(20):
        disk = MemoryFiles()
        _, log = open_small(disk)
        disk.power_lasts = 1
        with pytest.raises(PowerLossError):
            log.write([LogWrite(1, append=run(1, b"x"))])
        disk.lose_power(random.Random(seed))
        entries.add(len(open_small(disk)[0].entries))
    assert entries == {0, 1}


def test_c8_a_fresh_directory_draws_its_instance_once() -> None:
    disk = MemoryFiles()
    first, _ = open_small(disk)
    assert first.fresh
    assert first.identity.instance == draw_instance()
    again, _ = open_small(disk, draw=lambda: pytest.fail("drawn again"))
    assert not again.fresh
    assert again.identity == first.identity


def test_founding_addresses_count_once_and_later_ones_go_on_from_them() -> None:
    disk = MemoryFiles()
    one, two = {NODE: "one:7421"}, {NodeId(2): "two:7421"}
    open_log(disk, node_id=NODE, founding=one | two, draw_instance=draw_instance, ahead=Inline())
    recovered, log = open_log(disk, node_id=NODE, founding=one, draw_instance=draw_instance, ahead=Inline())
    assert recovered.addresses == one | two
    assert recovered.identity.founders == (NODE, NodeId(2))
    log.write([LogWrite(1, addresses=((NodeId(2), "moved:7421"),))])
    assert open_small(disk)[0].addresses == one | {NodeId(2): "moved:7421"}


def test_c8_the_data_of_another_node_is_refused() -> None:
    disk = MemoryFiles()
    open_small(disk)
    with pytest.raises(DataDirError, match="holds the data of node 1, and this is node 2"):
        open_log(disk, node_id=NodeId(2), draw_instance=draw_instance, ahead=Inline())


def test_d2_names_are_durable_before_anything_is_promised() -> None:
    """Each time the power goes right after opening, the directory is still there, with its instance."""
    for seed in range(20):
        disk = MemoryFiles()
        open_small(disk)
        disk.lose_power(random.Random(seed))
        recovered, _ = open_small(disk, draw=lambda: pytest.fail("the directory was lost"))
        assert recovered.identity.instance == draw_instance()


def test_a_write_larger_than_a_segment_gets_a_segment_of_its_size() -> None:
    disk = MemoryFiles()
    _, log = open_small(disk)
    writes = [LogWrite(n, append=run(n, b"x" * size)) for n, size in enumerate((100, 20_000, 100, 9_000), 1)]
    for write in writes:
        log.write([write])
    assert Model().apply(writes).matches(open_small(disk)[0])
    assert {len(content) for _, content in segments_of(disk)} == {4096, 21504, 10240}


def test_a_rotation_that_finds_its_next_segment_made_costs_three_syncs_in_all() -> None:
    """Seal, state and group; zeroing comes after, from `ahead`."""
    disk = MemoryFiles()
    _, log = open_small(disk)
    names = set(disk.names())
    ticket, before = 0, 0
    while set(disk.names()) == names:
        ticket += 1
        before = disk.steps
        log.write([LogWrite(ticket, append=run(ticket, b"x" * 400))])
    making_next = 5
    assert disk.steps - before == 3 * 2 + making_next


def test_a_segment_that_could_not_be_made_fails_the_write_that_needs_it() -> None:
    disk, model = MemoryFiles(), Model()
    _, log = open_small(disk)
    disk.is_full = True
    failure = None
    for ticket in range(1, 100):
        write = LogWrite(ticket, append=run(ticket, b"x" * 400))
        try:
            log.write([write])
        except OSError as error:
            failure = error
            break
        model = model.apply([write])
    assert failure is not None
    assert len(model.entries) > 8
    disk.is_full = False
    assert model.matches(open_small(disk)[0])


def test_unknown_files_are_left_alone_and_unfinished_segments_are_removed() -> None:
    disk = MemoryFiles()
    open_small(disk)
    for name in ("notes.txt", "0000000000000009.log.new"):
        disk.create(name)
    open_small(disk)
    assert "notes.txt" in disk.names()
    assert "0000000000000009.log.new" not in disk.names()


def test_simulated_log_keeps_what_it_synced_over_many_crashes() -> None:
    rng = random.Random(11)
    log, model = SimulatedLog(NODE, draw_instance, segment_bytes=4096), Model()
    for life in range(150):
        for _ in range(rng.randrange(4)):
            writes = draw_snapshot(rng, log, model)
            writes += draw_writes(rng, model.apply(writes), 1, 2)
            for write in writes:
                log.submit(write)
            log.sync()
            model = model.apply(writes)
        waiting = draw_writes(rng, model, 1, 2)
        for write in waiting:
            log.submit(write)
        recovered = log.crash(rng)
        assert model.matches(recovered) or model.apply(waiting).matches(recovered), life
        model = model if model.matches(recovered) else model.apply(waiting)
    assert log.sync() is None
    assert model.snapshot is not None
    assert model.snapshot.index > 50


def test_d4_a_segment_that_found_no_room_leaves_no_part_of_itself() -> None:
    """What little room there is may be all that the rest of the node has."""
    disk = MemoryFiles()
    _, log = open_small(disk)
    disk.fault = Fault(0, frozenset({Operation.WRITE}), errno.ENOSPC)
    larger_than_a_segment = [LogWrite(1, append=run(1, bytes(9000)))]
    with pytest.raises(DiskFullError):
        log.write(larger_than_a_segment)
    assert disk.names() == [segment_name(1), segment_name(2)]
    disk.fault = None
    log.write(larger_than_a_segment)
    assert Model().apply(larger_than_a_segment).matches(open_small(disk)[0])


def test_d4_a_simulated_log_on_a_full_disk_keeps_its_group_and_goes_on_with_it() -> None:
    log = SimulatedLog(NODE, draw_instance, segment_bytes=4096)
    log.disk.fault = Fault(0, frozenset({Operation.WRITE}), errno.ENOSPC)
    for ticket in (1, 2):
        log.submit(LogWrite(ticket, append=run(ticket, bytes(900))))
    assert log.sync() is None
    log.submit(LogWrite(3, append=run(3, b"later")))
    assert log.sync() is None
    log.disk.fault = None
    assert [log.sync(), log.sync(), log.sync()] == [2, 3, None]
    assert log.crash(random.Random(1)).entries == run(1, bytes(900), bytes(900), b"later")


def draw_snapshot(rng: random.Random, log: SimulatedLog, model: Model) -> list[LogWrite]:
    """Now and then one is taken, or received from a leader that is ahead; entries follow it."""
    covered, last = model.snapshot.index if model.snapshot else 0, len(model.entries)
    resets = rng.random() < 0.2
    if rng.random() < 0.6 or (covered == last and not resets):
        return []
    index = last + 1 if resets else rng.randint(covered + 1, last)
    entry = None if resets else model.entries[index - 1]
    term = entry[0] if entry else max(model.hard_state.term, 1)
    store(log.snapshots, header(index, term), state_at(index))
    return [LogWrite(1, snapshot=mark(index, term, resets=resets))]


def test_d3_a_damaged_log_does_not_open_and_is_left_as_it_is() -> None:
    disk = MemoryFiles()
    open_small(disk)[1].write([LogWrite(1, hard_state(1), run(1, b"entry"))])
    name, content = segments_of(disk)[0]
    disk.open(name).write_at(600, bytes([content[600] ^ 1]))
    damaged = segments_of(disk)
    with pytest.raises(CorruptData, match=f"memory/{name}: damaged at offset 512"):
        open_small(disk)
    assert segments_of(disk) == damaged
