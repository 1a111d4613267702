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
            Output.standard.document(
                "pcinspect",
                [
                    "file": InspectionJSON.file(inspection),
                    "slots": InspectionJSON.slots(inspection),
                    "candidates": InspectionJSON.candidates(inspection.decision),
                ])
        } else {
            for (index, report) in inspection.decision.slots.enumerated() {
                if index > 0 { Output.standard.line() }
                Output.standard.show { lines(report, inspection, width: $0) }
            }
        }
        return inspection.status
    }

    private func lines(
        _ report: SlotReport, _ inspection: Inspection, width: Int?
    ) -> [StyledText] {
        let label = report.reason.label(isWriterAtWork: inspection.isWriterAtWork)
        var facts = FactTable()
        let geometry = inspection.geometry
        facts.add(
            "at byte",
            """
            header \(report.headerOffset), table \(geometry.tableOffset(report.slot)), data \
            \(geometry.slotDataOffset(report.slot))
            """)
        if let pin = inspection.pins.first(where: { $0.slot == report.slot }) {
            facts.add("reader", "\(pin.description)")
        }
        if let detail = report.detail { facts.add("damage", StyledText("\(detail)", .red)) }
        if let header = report.usedHeader {
            facts.add("step", "\(header.step), sequence \(header.sequence)")
            facts.add("began", "\(Quantity.date(header.beganTime))")
            if header.state == .complete {
                facts.add("completed", completed(header, inspection))
                if let rate = header.storedBytesPerSecond {
                    facts.add("rate", "\(Quantity.rate(bytesPerSecond: rate)) stored")
                }
                facts.add("payload", payload(header))
                facts.add("stored", stored(header))
                facts.add("logical digest", "\(header.logicalDigest)")
            } else {
                facts.add("intended payload", "\(Quantity.bytes(header.payloadByteCount))")
            }
            if !header.userMetadata.isEmpty { facts.add("user metadata", "\(header.userMetadata)") }
        }
        return ["\("slot \(report.slot)", .bold)  \(label)"] + facts.lines(width: width)
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
