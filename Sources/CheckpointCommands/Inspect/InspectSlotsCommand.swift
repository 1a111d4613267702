internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

struct InspectSlotsCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "slots", abstract: "Every field of every slot header.")

    @OptionGroup var options: InspectedFile

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
        if options.json {
            Output.standard.write(
                JSONValue.document(
                    tool: "pcinspect",
                    [
                        "file": InspectionJSON.file(inspection),
                        "slots": InspectionJSON.slots(inspection),
                        "candidates": InspectionJSON.candidates(inspection.decision),
                    ]
                ).bytes)
        } else {
            for (index, report) in inspection.decision.slots.enumerated() {
                if index > 0 { Output.standard.line() }
                let output = Output.standard
                lines(report, inspection, width: output.columnCount).forEach(output.line)
            }
        }
        return inspection.status
    }

    private func lines(
        _ report: SlotReport, _ inspection: Inspection, width: Int?
    ) -> [StyledText] {
        let label = report.reason.label(isWriterAtWork: inspection.isWriterAtWork)
        var table = TableLayout([.left(""), .left("")])
        func add(_ name: String, _ value: StyledText) {
            table.add([StyledText(name, .dim), value])
        }
        let geometry = inspection.geometry
        add(
            "at byte",
            """
            header \(report.headerOffset), table \(geometry.tableOffset(report.slot)), data \
            \(geometry.slotDataOffset(report.slot))
            """)
        if let pin = inspection.pins.first(where: { $0.slot == report.slot }) {
            add("reader", "\(pin.description)")
        }
        if let detail = report.detail { add("damage", StyledText("\(detail)", .red)) }
        if let header = report.usedHeader {
            add("step", "\(header.step), sequence \(header.sequence)")
            add("began", "\(Quantity.date(header.beganTime))")
            if header.state == .complete {
                add("completed", completed(header, inspection))
                if let rate = header.storedBytesPerSecond {
                    add("rate", "\(Quantity.rate(bytesPerSecond: rate)) stored")
                }
                add("payload", payload(header))
                add("stored", stored(header))
                add("logical digest", "\(header.logicalDigest)")
            } else {
                add("intended payload", "\(Quantity.bytes(header.payloadByteCount))")
            }
            if !header.userMetadata.isEmpty { add("user metadata", "\(header.userMetadata)") }
        }
        return ["\("slot \(report.slot)", .bold)  \(label)"] + table.wrappedLines(width: width)
    }

    private func completed(_ header: SlotHeader, _ inspection: Inspection) -> StyledText {
        let age = Quantity.age(of: header.completedTime, now: inspection.now)
        let took = Quantity.duration(
            nanoseconds: header.completedTime - min(header.beganTime, header.completedTime))
        return "\(Quantity.date(header.completedTime)), \(age), after \(took)"
    }

    private func payload(_ header: SlotHeader) -> StyledText {
        let size = Quantity.bytes(header.payloadByteCount)
        return header.payloadKind == .opaque
            ? "\(size), opaque"
            : "\(size), safetensors with a manifest of \(Quantity.bytes(header.manifestByteCount))"
    }

    private func stored(_ header: SlotHeader) -> StyledText {
        """
        \(Quantity.bytes(header.storedByteCount)) in \
        \(Quantity.plural(header.chunkCount, "chunk")), codec \(header.codec.label)
        """
    }
}
