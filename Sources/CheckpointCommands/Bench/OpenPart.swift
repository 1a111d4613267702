internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointWriter

/// Opening a file and choosing the newest valid slot, from metadata alone.
struct OpenSection: BenchSection {
    struct Entry: Sendable {
        var slotCount: Int
        var payloadByteCount: UInt64
        var milliseconds = Samples()
    }

    var entries: [Entry] = []
}

extension BenchRunner {
    func measureOpen() throws(CheckpointError) -> OpenSection {
        // Slots of a gigabyte would only fill the disk: what is read grows by 12 KiB with them.
        let largest = min(settings.byteCounts.max() ?? 0, settings.isFull ? 1 << 30 : 256 << 20)
        let byteCounts = Set([min(1 << 20, largest), largest]).sorted()
        for byteCount in byteCounts {
            try checkSpace(for: "open", byteCount: byteCount, slotCount: 16)
        }
        var section = OpenSection()
        for slotCount in [8, 16] {
            for byteCount in byteCounts {
                section.entries.append(try measureOpen(slotCount, byteCount))
            }
        }
        return section
    }

    /// Every slot has a checkpoint: as much as there is to look at.
    private func measureOpen(
        _ slotCount: Int, _ byteCount: UInt64
    ) throws(CheckpointError) -> OpenSection.Entry {
        let workspace = BenchWorkspace(directory: settings.directory)
        try progress("filling \(slotCount) slots of \(Quantity.bytes(byteCount)) to open")
        let state = BenchState(byteCount: byteCount)
        let path = try workspace.createFile(
            "open", capacity: UInt64(state.byteCount), inFlight: 1, retain: slotCount - 1,
            chunkByteCount: settings.chunkByteCount, preallocation: .fallocate)
        let writer = try CheckpointWriter(path: path, options: settings.writerOptions)
        for step in 1...slotCount { _ = try save(state.payload, UInt64(step), writer) }
        try writer.close()
        var entry = OpenSection.Entry(
            slotCount: slotCount, payloadByteCount: UInt64(state.byteCount))
        for _ in 0..<max(settings.roundCount, 20) {
            let elapsed = try seconds { () throws(CheckpointError) in
                let reader = try CheckpointReader(path: path)
                guard reader.decision.candidates.first?.step == UInt64(slotCount) else {
                    throw CheckpointError(
                        .corrupt, "\(path): the newest checkpoint is not step \(slotCount)")
                }
            }
            entry.milliseconds.add(elapsed * 1e3)
        }
        return entry
    }
}

extension OpenSection {
    var lines: [StyledText] {
        var table = BenchTable()
        for entry in entries {
            table.add(
                "\(entry.slotCount) slots of \(Quantity.bytes(entry.payloadByteCount))",
                entry.milliseconds, digits: 3, unit: "ms")
        }
        return [StyledText("Open, and choose the newest valid slot (metadata)", .bold)]
            + table.lines + [""]
    }

    var json: JSONValue {
        .array(
            entries.map {
                .dictionary([
                    "slot_count": .count($0.slotCount),
                    "payload_byte_count": .integer($0.payloadByteCount),
                    "milliseconds": $0.milliseconds.json,
                ])
            })
    }
}
