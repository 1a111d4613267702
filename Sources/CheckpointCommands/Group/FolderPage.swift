internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointGroup
internal import CheckpointStorage

/// The report page of a folder with the files of ranks.
struct FolderPage {
    let inspection: FolderInspection
    /// Nanoseconds since 1970.
    let now: UInt64

    private var decision: GroupDecision { inspection.decision }

    static func write(
        _ path: String, of inspection: FolderInspection
    ) throws(CheckpointError) -> ExitStatus {
        let target = try ExtractionTarget(path, source: inspection.folder.path)
        let page = FolderPage(inspection: inspection, now: SystemClock.wallTime)
        try target.write(document: Array(page.html.markup.utf8))
        return inspection.status
    }

    var html: HTMLText {
        var main: HTMLText = ""
        for world in decision.worlds {
            main += ReportPage.section(
                "\(Quantity.plural(Int(world.size), "rank"))", RankMatrix(world, decision).html)
        }
        main += ReportPage.section("Findings", findings)
        main += ReportPage.section("Run", facts)
        return ReportPage.document(title: name, header: header, main: main)
    }

    private var name: String {
        inspection.folder.path.split(separator: "/").last.map(String.init)
            ?? inspection.folder.path
    }

    private var header: HTMLText {
        let isSound = inspection.status.isEmpty
        let restart = RestartText(decision)
        let details = restart.details.map { detail -> HTMLText in "<br>\(Self.sentence(detail))" }
        return """
            <h1>\(name)</h1><p class="dim">\(inspection.folder.path) · \
            \(Quantity.plural(inspection.files.count, "file")) of ranks · \(Quantity.date(now))</p>\
            <p class="verdict \(isSound ? "good" : "bad")">\(isSound ? "Sound" : "Damaged")</p>\
            <p>The job <strong>\(restart.head.plain)</strong>.\(details)</p>\
            <p class="dim">PCcheck \(Tool.version): metadata was checked, tensor data was not \
            read.</p>
            """
    }

    private static func sentence(_ text: String) -> String {
        text.prefix(1).uppercased() + text.dropFirst() + "."
    }

    private var findings: HTMLText {
        let damaged = inspection.damagedPaths.map { path -> HTMLText in
            "<article><h3>\(path) <span class=\"bad\">damaged</span></h3></article>"
        }
        let articles = inspection.findings.map { finding -> HTMLText in
            let kind =
                switch finding.severity {
                case .error: "bad"
                case .warning: "warn"
                case .info: "dim"
                }
            return """
                <article><h3><code>\(finding.id)</code> \(finding.problem.title) \
                <span class="\(kind)">\(finding.severity.rawValue)</span></h3>\
                <p>\(finding.path.map { "\($0): " } ?? "")\(Self.sentence(finding.text))</p>\
                <p class="dim">\(finding.problem.explanation) \(finding.problem.advice)</p>\
                </article>
                """
        }
        if damaged.isEmpty && articles.isEmpty { return "<p>Nothing was found.</p>" }
        return "\(damaged)\(articles)"
    }

    private var facts: HTMLText {
        let facts: [(String, String)] = [
            ("run", decision.run.map { "\($0)" } ?? "—"),
            ("watermark", decision.watermark.map { "\($0)" } ?? "—"),
            ("next attempt", decision.nextAttempt.map { "\($0)" } ?? "—"),
            ("other files", "\(inspection.folder.others.count) ignored"),
        ]
        let rows = facts.map { name, value -> HTMLText in "<dt>\(name)</dt><dd>\(value)</dd>" }
        return "<dl>\(rows)</dl>"
    }
}
