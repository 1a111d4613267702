internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

/// A file as pcinspect and pcextract see it: its metadata and what recovery makes of it.
struct Inspection {
    let path: String
    let storage: FileStorage
    let image: MetadataImage
    let decision: RecoveryDecision
    /// A writer has the file open now; nil where there are no locks that show it.
    let isWriterAtWork: Bool?
    /// Slots that readers keep from a writer now.
    let pins: [SlotPin]
    /// The time that ages are relative to, in nanoseconds since 1970.
    let now: UInt64

    /// Reads the metadata of `path` without a lock, until no writer moved on meanwhile.
    init(path: String) throws(CheckpointError) {
        storage = try .opened(path, .read)
        // A writer closes the file before it releases the lock: asked in this order, a free lock
        // means that the superblock read below shows how its holder ended.
        isWriterAtWork = try storage.isWriterAtWork
        image = try MetadataImage.readSettled(from: storage)
        self.path = path
        do throws(CheckpointError) {
            decision = try SlotSelection.decide(image, allowsTruncation: true)
        } catch {
            throw error.about(path)
        }
        pins = storage.slotPins(decision.identity.geometry.slots)
        now = SystemClock.wallTime
    }

    /// A search for a checkpoint that fits.
    ///
    /// - Parameter proof: `waived` to show what there is, rather than use it.
    func search(
        proof: Proof, where isWanted: @escaping (Candidate) -> Bool
    ) -> Load {
        Load(
            CheckpointReader(storage: storage, decision: decision), proof: proof, where: isWanted)
    }

    /// The newest checkpoint that fits, damaged or not, for a command that shows it. The search
    /// continues only while a writer takes what it finds, or its header cannot be read again.
    func shown(
        _ choice: CheckpointChoice, where isWanted: @escaping (Candidate) -> Bool = { _ in true }
    ) throws(CheckpointError) -> SelectedCheckpoint {
        let isFitting: (Candidate) -> Bool = { choice.accepts($0) && isWanted($0) }
        guard decision.candidates.contains(where: isFitting) else { throw choice.missing(self) }
        return try search(proof: .waived, where: isFitting).next()
    }

    var geometry: Geometry { decision.identity.geometry }

    /// What became of the newest durable checkpoint, when its slot is not even a candidate and
    /// nothing newer is; nil otherwise.
    var loss: (anchor: Anchor, report: SlotReport)? {
        guard let anchor = decision.superblock?.anchor,
            decision.candidates.first?.sequence ?? .none < anchor.sequence,
            let report = decision.slots.first(where: { $0.slot == anchor.slot })
        else { return nil }
        return (anchor, report)
    }

    /// Whether anything is damaged: what pcinspect's exit status reports.
    var isDamaged: Bool {
        decision.end != .whole || decision.isFork || !image.readFailures.isEmpty
            || decision.identityFindings.contains { !$0.agreesWithChosen }
            || decision.superblockFindings.contains { $0.superblock == nil }
            || decision.slots.contains { $0.reason.isDamage }
    }

    var status: ExitStatus { isDamaged ? .uncorrected : .clean }
}

extension SlotReason {
    /// The slot is not in a state that a crash alone can leave.
    var isDamage: Bool {
        switch self {
        case .anchored, .retained, .unanchored, .older, .empty, .writing: false
        default: true
        }
    }

    /// One word or two for people.
    func label(isWriterAtWork: Bool?) -> StyledText {
        switch self {
        case .anchored: StyledText("newest", .green)
        case .retained: StyledText("retained", .green)
        case .unanchored: StyledText(isWriterAtWork == true ? "complete" : "unanchored", .yellow)
        case .older: StyledText("older", .dim)
        case .empty: StyledText("empty", .dim)
        case .writing:
            switch isWriterAtWork {
            case true?: StyledText("being written", .cyan)
            case false?: StyledText("torn", .yellow)
            case nil: StyledText("incomplete", .yellow)
            }
        case .stale: StyledText("stale", .red)
        case .blank: StyledText("blank", .red)
        case .headerDamaged: StyledText("bad header", .red)
        case .tableDamaged: StyledText("bad table", .red)
        case .foreign: StyledText("foreign", .red)
        case .misdirected: StyledText("misdirected", .red)
        case .unreadable: StyledText("unreadable", .red)
        default: StyledText(rawValue, .red)
        }
    }
}

extension SlotReport {
    /// The header of a checkpoint, complete or not; nil in an empty slot.
    var usedHeader: SlotHeader? { header.flatMap { $0.state == .empty ? nil : $0 } }
}
