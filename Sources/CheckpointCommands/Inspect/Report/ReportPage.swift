internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery

/// The report page: one HTML document that needs nothing else.
struct ReportPage {
    let report: CheckReport
    /// The manifest of the checkpoint that a resume loads, or why it cannot be shown.
    let manifest: Result<SafetensorsManifest, CheckpointError>?
    let isWriterAtWork: Bool?
    /// Nanoseconds since 1970.
    let now: UInt64

    private var charts: ReportCharts { ReportCharts(report: report) }

    var html: HTMLText { Self.document(title: name, header: header, main: sections) }

    /// A page that needs nothing else, and runs and styles nothing else.
    static func document(title: String, header: HTMLText, main: HTMLText) -> HTMLText {
        let policy =
            "default-src 'none'; style-src 'sha256-\(ReportStyle.cssDigest)'; script-src "
            + "'sha256-\(ReportStyle.scriptDigest)'; base-uri 'none'; form-action 'none'"
        return """
            <!DOCTYPE html>
            <html lang="en"><head><meta charset="utf-8">
            <meta http-equiv="Content-Security-Policy" content="\(policy)">
            <meta name="viewport" content="width=device-width, initial-scale=1">
            <title>\(title) · PCcheck report</title>
            <style>\(Self.raw(ReportStyle.css))</style></head>
            <body><header>\(header)</header><main>\(main)</main>
            <script>\(Self.raw(ReportStyle.script))</script></body></html>

            """
    }

    /// The source code's own text.
    private static func raw(_ text: String) -> HTMLText { HTMLText(stringLiteral: text) }

    private var name: String {
        report.path.split(separator: "/").last.map(String.init) ?? report.path
    }

    static func section(_ title: String, _ content: HTMLText) -> HTMLText {
        "<section><h2>\(title)</h2>\(content)</section>\n"
    }

    private var sections: HTMLText {
        var html: HTMLText = ""
        if let decision = report.decision {
            html += Self.section("Slots", charts.slotMap(decision))
        }
        html += Self.section("Findings", findings)
        guard let decision = report.decision else { return html }
        if let timeline = charts.timeline(decision) {
            html += Self.section("Timeline", "\(timeline)\(checkpoints(decision))")
        }
        html += Self.section("Tensors", tensors)
        if !decision.candidates.isEmpty {
            html += Self.section("Chunks", "\(decision.candidates.map(charts.chunkMap))")
        }
        html += Self.section("Superblocks", superblocks(decision))
        return html + Self.section("Identity", identity(decision.identity))
    }

    // MARK: What a person wants first

    private var header: HTMLText {
        let (verdict, kind): (String, String) =
            if report.decision == nil {
                ("This file cannot be used", "bad")
            } else if report.isClean {
                ("Clean", "good")
            } else {
                ("Damaged", "bad")
            }
        let depth =
            report.depth == .full
            ? "every chunk was read and compared with its digest"
            : "metadata was checked, tensor data was not read"
        let writer = isWriterAtWork == true ? " · a writer was at work" : ""
        return """
            <h1>\(name)</h1><p class="dim">\(report.path) · \
            \(Quantity.bytes(report.fileByteCount)) · \(Quantity.date(now))\(writer)</p>\
            <p class="verdict \(kind)">\(verdict)</p><p>\(resume)</p>\
            <p class="dim">PCcheck \(Tool.version): \(depth).</p>
            """
    }

    private var resume: HTMLText {
        let resume = report.resume
        var html: HTMLText
        if let choice = resume.choice {
            let proof = resume.isProven ? ", every byte of it verified" : ""
            html = """
                A resume loads <strong>step \(choice.step)</strong> from slot \(choice.slot) \
                (sequence \(choice.sequence), \(choice.kind.rawValue))\(proof).
                """
        } else if report.decision?.highestSequence == SequenceNumber.none {
            html = "A resume starts from the beginning: nothing was saved yet."
        } else {
            html = "A resume loads nothing from this file."
        }
        for rejection in resume.rejected {
            let step = rejection.step.map { "step \($0)" } ?? "the newer checkpoint"
            html += "<br>Not \(step) in slot \(rejection.slot): \(rejection.explanation)."
        }
        return html
    }

    private var findings: HTMLText {
        if report.findings.isEmpty { return "<p>Nothing was found.</p>" }
        var html: HTMLText = ""
        for group in report.findingGroups {
            let first = group[group.startIndex]
            let places = group.prefix(8).map { finding -> HTMLText in
                """
                <p>\(Self.place(finding))Found \(finding.found), expected \(finding.expected).</p>
                """
            }
            let kind =
                switch first.severity {
                case .error: "bad"
                case .warning: "warn"
                case .info: "dim"
                }
            html += """
                <article><h3><code>\(first.id)</code> \(first.problem.title) \
                <span class="\(kind)">\(first.severity.rawValue)</span></h3>\(places)
                """
            if group.count > places.count {
                html += """
                    <p class="dim">and \(Quantity.count(UInt64(group.count - places.count))) more \
                    of these; pcfsck --json lists all.</p>
                    """
            }
            html += """
                <p class="dim">\(first.problem.explanation) \(first.problem.advice)</p></article>
                """
        }
        return html
    }

    private static func place(_ finding: Finding) -> String {
        let place = finding.place
        return place.isEmpty ? "" : place.prefix(1).uppercased() + place.dropFirst() + ". "
    }

    // MARK: What the file holds

    private static func table(_ titles: [String], numeric: Set<Int>, _ rows: [[String]]) -> HTMLText
    {
        func cell(_ index: Int, _ text: String) -> HTMLText {
            "<td\(raw(numeric.contains(index) ? " class=\"n\"" : ""))>\(text)</td>"
        }
        let head = titles.enumerated().map { index, title -> HTMLText in
            "<th scope=\"col\"\(raw(numeric.contains(index) ? " class=\"n\"" : ""))>\(title)</th>"
        }
        let body = rows.map { row -> HTMLText in "<tr>\(row.enumerated().map(cell))</tr>" }
        return """
            <div class="scroll"><table><thead><tr>\(head)</tr></thead><tbody>\(body)</tbody>\
            </table></div>
            """
    }

    private func checkpoints(_ decision: RecoveryDecision) -> HTMLText {
        let rows = zip(decision.slots, report.slots).map { found, check -> [String] in
            let state = check.reason.label(isWriterAtWork: isWriterAtWork).plain
            guard let header = found.usedHeader else {
                return ["\(found.slot)", state, "—", "—", "—", "—", "—"]
            }
            let isComplete = header.state == .complete
            let took = header.completedTime - min(header.beganTime, header.completedTime)
            return [
                "\(found.slot)", state, "\(header.step)", "\(header.sequence)",
                Quantity.bytes(header.payloadByteCount), Quantity.date(header.beganTime),
                isComplete ? Quantity.duration(nanoseconds: took) : "—",
            ]
        }
        return Self.table(
            ["slot", "state", "step", "sequence", "payload", "began", "took"],
            numeric: [0, 2, 3, 4, 6], rows)
    }

    private var tensors: HTMLText {
        switch manifest {
        case nil:
            report.resume.choice == nil
                ? "<p>There is no checkpoint to show.</p>"
                : "<p>The checkpoint holds opaque bytes, which have no tensors.</p>"
        case .failure(let error):
            "<p class=\"bad\">The list of tensors cannot be read: \(error.message)</p>"
        case .success(let manifest): ReportTensors.section(manifest)
        }
    }

    private func superblocks(_ decision: RecoveryDecision) -> HTMLText {
        let rows = decision.superblockFindings.map { copy -> [String] in
            let place = "\(copy.position.rawValue), byte \(copy.offset)"
            guard let superblock = copy.superblock else {
                return [place, "damaged: \(SummaryScreen.failure(copy.result) ?? "")"]
                    + [String](repeating: "—", count: 4)
            }
            let anchor = superblock.anchor
            return [
                place, superblock.isCleanClose ? "intact, closed" : "intact",
                "\(superblock.generation)", anchor.map { "\($0.step)" } ?? "—",
                anchor.map { "\($0.slot)" } ?? "—", Quantity.date(superblock.commitTime),
            ]
        }
        return Self.table(
            ["copy", "state", "generation", "step", "slot", "written"], numeric: [2, 3, 4], rows)
    }

    private func identity(_ identity: IdentityBlock) -> HTMLText {
        let geometry = identity.geometry
        let facts: [(String, String)] = [
            ("file id", "\(identity.fileUUID)"),
            ("format", "\(identity.version.major).\(identity.version.minor)"),
            ("created", "\(Quantity.date(identity.createdTime)) by \(identity.creator)"),
            ("fingerprint", identity.fingerprint.isEmpty ? "—" : identity.fingerprint),
            ("rank", "\(identity.rank) of \(identity.worldSize)"),
            (
                "slots",
                "\(geometry.slotCount) of \(Quantity.bytes(geometry.slotByteCount)): "
                    + "\(geometry.inFlightCount) in flight, \(geometry.retainCount) retained"
            ), ("chunk", Quantity.bytes(UInt64(geometry.chunkByteCount))),
        ]
        let rows = facts.map { name, value -> HTMLText in "<dt>\(name)</dt><dd>\(value)</dd>" }
        return "<dl>\(rows)</dl>"
    }
}

extension HTMLText {
    static func + (left: HTMLText, right: HTMLText) -> HTMLText { "\(left)\(right)" }
}
