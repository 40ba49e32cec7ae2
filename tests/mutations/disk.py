"""Bugs in the log and the snapshots on disk: lockd/disk."""

from tests.mutations.mutation import Mutation

_COMPACTION = "tests/disk/test_disk_compaction.py"
_FORKING = "tests/server/test_server_forking.py"
_FILES = "tests/disk/test_disk_files.py"
_FAULTS = "tests/disk/test_disk_faults.py"
_RECOVERY = "tests/disk/test_disk_recovery.py"
_SEGMENTS = "tests/disk/test_disk_segments.py"
_SNAPSHOTS = "tests/disk/test_disk_snapshots.py"
_TORN = "tests/disk/test_disk_torn_or_damaged.py"
_WAL = "tests/disk/test_disk_wal.py"
_POWER = f"{_SEGMENTS}::test_d1_d2_d3_power_lost_at_every_step_loses_nothing_that_was_durable"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "a write is acknowledged before its sync",
        "D1",
        "lockd/disk/segments.py",
        "            self._file.write_at(self._offset, batch)\n        self._file.sync()\n",
        "            self._file.write_at(self._offset, batch)\n",
        (_POWER,),
    ),
    Mutation(
        "fdatasync is left out",
        "D1",
        "lockd/disk/files.py",
        "        os.fdatasync(descriptor)\n",
        "        pass\n",
        (f"{_WAL}::test_d1_a_real_fdatasync_that_fails_is_a_failure",),
    ),
    Mutation(
        "the log goes on after a sync that failed",
        "D1",
        "lockd/disk/wal.py",
        "            self._refusing = True\n            on_failure(error)\n",
        "            on_failure(error)\n            self._run(on_durable, on_failure, on_full)\n",
        (f"{_WAL}::test_d1_after_a_failed_sync_nothing_is_told_of_and_nothing_is_taken",),
    ),
    Mutation(
        "a start takes what it read from the page cache for durable",
        "D1",
        "lockd/disk/segments.py",
        "    for spot, content in ((last, batch), (image.tail, zeros)):",
        "    for spot, content in ((image.tail, zeros),):",
        (f"{_SEGMENTS}::test_d1_what_a_start_reports_is_durable_although_the_sync_before_it_failed",),
    ),
    Mutation(
        "term and vote are not written",
        "D2",
        "lockd/disk/record.py",
        "    if write.hard_state is not None:\n",
        "    if write.hard_state is not None and write.append:\n",
        (f"{_WAL}::test_hard_state_alone_and_all_sorts_of_writes_survive_a_restart",),
    ),
    Mutation(
        "the directory is not synced after a segment got its name",
        "D2",
        "lockd/disk/segments.py",
        "        raise\n    files.sync_directory()\n    return segment_bytes\n",
        "        raise\n    return segment_bytes\n",
        (f"{_SEGMENTS}::test_d2_names_are_durable_before_anything_is_promised", _POWER),
    ),
    Mutation(
        "a new data directory is not synced into the one above",
        "D2",
        "lockd/disk/files.py",
        "        os.fsync(descriptor)\n    finally:\n        os.close(descriptor)\n",
        "        pass\n    finally:\n        os.close(descriptor)\n",
        (f"{_FILES}::test_d2_each_new_directory_is_synced_into_the_one_above",),
    ),
    Mutation(
        "a segment gets its name before its content is synced",
        "D2",
        "lockd/disk/segments.py",
        "            file.write_at(0, first_batch)\n        file.sync()\n",
        "            file.write_at(0, first_batch)\n",
        (_POWER,),
    ),
    Mutation(
        "damage of the last batch is taken for torn and cut off",
        "D3",
        "lockd/disk/batch.py",
        "    if segment[end - 1] != 0 and not unwritten:\n",
        "    if False:\n",
        (f"{_TORN}::test_d3_every_flipped_bit_of_a_complete_batch_refuses_with_file_and_offset",),
    ),
    Mutation(
        "a torn tail is accepted: the checksum of the body is not looked at",
        "D3",
        "lockd/disk/batch.py",
        "    if found_crc != body_crc:\n",
        "    if False:\n",
        (f"{_TORN}::test_d3_write_cut_at_any_byte_recovers_the_state_before_it",),
    ),
    Mutation(
        "a torn batch with a missing sector is taken for damage",
        "D3",
        "lockd/disk/batch.py",
        "    if segment[end - 1] != 0 and not unwritten:\n",
        "    if segment[end - 1] != 0:\n",
        (f"{_TORN}::test_d3_any_subset_of_sectors_recovers_the_state_before_it",),
    ),
    Mutation(
        "a hole in the middle of the log is taken for its end",
        "D3",
        "lockd/disk/batch.py",
        "    if beyond is not None:\n",
        "    if False:\n",
        (f"{_TORN}::test_d3_a_lost_sector_of_an_earlier_batch_refuses",),
    ),
    Mutation(
        "a damaged header is taken for the end of the log",
        "D3",
        "lockd/disk/batch.py",
        "    if segment[start + SECTOR_BYTES - 1] != 0:\n",
        "    if False:\n",
        (f"{_TORN}::test_d3_every_flipped_bit_of_a_complete_batch_refuses_with_file_and_offset",),
    ),
    Mutation(
        "a batch of another place passes",
        "D3",
        "lockd/disk/batch.py",
        'return crc32(struct.pack("<QI", self.segment, self.sector), crc32(self.instance.encode()))',
        "return crc32(self.instance.encode())",
        (f"{_TORN}::test_d3_a_batch_in_another_place_is_not_accepted", "tests/disk/test_disk_batch.py"),
    ),
    Mutation(
        "what a torn batch has left comes back under a later one",
        "D3",
        "lockd/disk/segments.py",
        "    for spot, content in ((last, batch), (image.tail, zeros)):",
        "    for spot, content in ((last, batch),):",
        (f"{_SEGMENTS}::test_d3_a_torn_tail_is_erased_durably_before_the_next_write",),
    ),
    Mutation(
        "a log whose end is missing starts as a shorter one",
        "D3",
        "lockd/disk/recovery.py",
        "            raise damaged(spot.name, spot.offset + len(batch), missing)\n",
        "            self._tail = Spot(spot.name, spot.segment, spot.offset + len(batch))\n",
        (f"{_RECOVERY}::test_d3_the_missing_last_segment_is_noticed",),
    ),
    Mutation(
        "a directory whose log is gone, with a snapshot left, starts as an empty one",
        "D3",
        "lockd/disk/segments.py",
        "        _refuse_snapshot_without_log(files)\n",
        "",
        (f"{_COMPACTION}::test_a_snapshot_without_a_log_is_no_empty_directory",),
    ),
    Mutation(
        "a full disk ends the node",
        "D4",
        "lockd/disk/errors.py",
        "        if error.errno in _NO_ROOM:\n",
        "        if False:\n",
        (f"{_SNAPSHOTS}::test_d4_a_full_disk_is_told_from_other_errors_and_leaves_nothing", _WAL),
    ),
    Mutation(
        "what found no room is acknowledged",
        "D4",
        "lockd/disk/wal.py",
        "                return not is_full\n",
        "                return True\n",
        (f"{_WAL}::test_d4_closing_a_log_on_a_full_disk_acknowledges_nothing",),
    ),
    Mutation(
        "what found no room is dropped",
        "D4",
        "lockd/disk/wal.py",
        "            except DiskFullError:\n                is_full = True\n",
        "            except DiskFullError:\n                on_full(True)\n                return True\n",
        (f"{_WAL}::test_d4_a_full_disk_keeps_what_was_submitted_and_goes_on_when_there_is_room",),
    ),
    Mutation(
        "a sync that failed for want of room is tried again",
        "D4",
        "lockd/disk/segments.py",
        "            self._file.write_at(self._offset, batch)\n        self._file.sync()\n",
        "            self._file.write_at(self._offset, batch)\n            self._file.sync()\n",
        (f"{_WAL}::test_d1_no_room_at_a_sync_is_a_failure_of_the_sync",),
    ),
    Mutation(
        "a snapshot that found no room at its end keeps the disk full",
        "D4",
        "lockd/disk/snapshots.py",
        "        except DiskFullError:\n            self.discard()\n            raise\n",
        "        except DiskFullError:\n            raise\n",
        (_FORKING,),
    ),
    Mutation(
        "a segment is removed before the mark of the snapshot is durable",
        "C9",
        "lockd/disk/segments.py",
        "        self._write_batch(body)\n"
        "        marked = after.mark != self._stream.mark\n"
        "        self._stream = after\n"
        "        if marked:\n"
        "            self._compact()\n",
        "        marked = after.mark != self._stream.mark\n"
        "        self._stream = after\n"
        "        if marked:\n"
        "            self._compact()\n"
        "            self._compaction.result()\n"
        "        self._write_batch(body)\n",
        (f"{_FAULTS}::test_d1_d2_d3_d4_every_fault_ends_well",),
    ),
    Mutation(
        "a segment goes that has entries after the snapshot",
        "C9",
        "lockd/disk/stream.py",
        "        needed = max((n for n, end in self.starts.items() if end <= self.mark.index), default=0)\n",
        "        needed = max(self.starts, default=0)\n",
        (f"{_COMPACTION}::test_segments_that_the_snapshot_stands_for_are_removed_and_no_others",),
    ),
    Mutation(
        "a snapshot is given its name unread",
        "C9",
        "lockd/disk/snapshot_file.py",
        "        for _ in self.body():\n            pass\n        return self.stored(header)\n",
        "        return self.stored(header)\n",
        (f"{_SNAPSHOTS}::test_c9_what_is_not_whole_is_thrown_away_and_never_gets_a_name",),
    ),
    Mutation(
        "the checksums of a snapshot are not looked at",
        "C9",
        "lockd/disk/snapshot_file.py",
        "        if self._raw(_CRC.size) != _CRC.pack(self._crc):\n",
        "        if not self._raw(_CRC.size):\n",
        (f"{_SNAPSHOTS}::test_c9_every_flipped_bit_and_every_shorter_or_longer_file_is_refused",),
    ),
    Mutation(
        "a snapshot gets its name before it is synced",
        "C9",
        "lockd/disk/snapshots.py",
        "            with room_needed():\n                self._file.sync()\n",
        "",
        (f"{_SNAPSHOTS}::test_a_file_gets_its_name_when_it_is_whole_and_durable",),
    ),
    Mutation(
        "a header that no node writes is believed, for its checksum holds",
        "C9",
        "lockd/disk/snapshot_file.py",
        "    if not wire.voters or any(list(ids) != sorted({*ids}) for ids in roles):\n",
        "    if False:\n",
        (f"{_SNAPSHOTS}::test_c9_a_header_that_no_node_writes_is_refused_although_its_checksum_holds",),
    ),
    Mutation(
        "a file that is being checked is cut short by the next of its name",
        "C9",
        "lockd/disk/files.py",
        "        with suppress(FileNotFoundError):\n"
        "            self.remove(name)\n"
        "        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)\n",
        "        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)\n",
        (f"{_FILES}::test_c9_a_file_that_is_open_stays_what_it_was_when_another_takes_its_name",),
    ),
    Mutation(
        "a snapshot is begun in the place of one that is being checked",
        "C9",
        "lockd/server/snapshots.py",
        "            incoming.unwanted = True\n",
        "            self._incoming = None\n",
        ("tests/server/test_server_receiving.py",),
    ),
    Mutation(
        "a state that has later entries than its header says is gone on from",
        "C9",
        "lockd/server/recovering.py",
        "    if machine.state.applied > header.meta.index:\n",
        "    if False:\n",
        ("tests/server/test_server_recovering.py",),
    ),
    Mutation(
        "a node whose snapshot is damaged starts with an empty state",
        "C9",
        "lockd/disk/segments.py",
        "    if mark is None:\n        return image.recovered\n",
        "    if mark is None or not snapshots.has(mark.index, mark.term):\n        return image.recovered\n",
        (f"{_COMPACTION}::test_d3_a_snapshot_that_is_missing_or_damaged_or_of_another_cluster_refuses",),
    ),
    Mutation(
        "an installed snapshot leaves the old log behind it",
        "C9",
        "lockd/disk/recovery.py",
        "                elif isinstance(record, SnapshotMark) and record.resets:\n",
        "                elif isinstance(record, SnapshotMark) and record.resets and not self._terms:\n",
        (f"{_COMPACTION}::test_c9_an_installed_snapshot_leaves_nothing_of_the_old_log",),
    ),
    Mutation(
        "a snapshot of a newer version is read as if it were of this one",
        "C11",
        "lockd/disk/snapshot_file.py",
        "        if version != FORMAT_VERSION:\n",
        "        if version < FORMAT_VERSION:\n",
        (f"{_SNAPSHOTS}::test_c11_a_newer_format_is_refused_as_such",),
    ),
    Mutation(
        "a log of a newer version is read as if it were of this one",
        "C11",
        "lockd/disk/batch.py",
        "    if version != FORMAT_VERSION:\n",
        "    if version < FORMAT_VERSION:\n",
        (f"{_RECOVERY}::test_c11_a_newer_format_is_refused_as_such_and_not_as_damage",),
    ),
    Mutation(
        "another node's data directory is taken over",
        "C8",
        "lockd/disk/segments.py",
        "    if owner != node_id:\n",
        "    if False:\n",
        (f"{_SEGMENTS}::test_c8_the_data_of_another_node_is_refused",),
    ),
)
