/// How bad a finding is.
public enum Severity: String, Hashable, Sendable, CaseIterable, Comparable {
    /// Normal after a crash, or worth knowing. Nothing to do.
    case info
    /// Not damage to anything durable, but not what a healthy file looks like.
    case warning
    /// Something durable, or its protection, is damaged.
    case error

    private var rank: Int { Self.allCases.firstIndex(of: self) ?? 0 }
    public static func < (left: Self, right: Self) -> Bool { left.rank < right.rank }
}

/// A kind of finding. Identifiers are stable: they are never reused for another meaning.
public struct Problem: Hashable, Sendable {
    /// What `pcfsck -p` may do about it, when it can prove that nothing is lost by it.
    public enum SafeFix: String, Hashable, Sendable {
        case rewriteIdentity = "rewrite from the other copy"
        case rewriteSuperblock = "rewrite from its twin"
    }

    /// Such as `PCK-S003`.
    public let id: String
    /// The worst severity with which it is reported; what a crash explains is reported milder.
    public let severity: Severity
    /// A few words.
    public let title: String
    /// What it means.
    public let explanation: String
    /// What to do.
    public let advice: String
    public let safeFix: SafeFix?

    init(
        _ id: String, _ severity: Severity, _ title: String, _ explanation: String,
        _ advice: String, fix: SafeFix? = nil
    ) {
        self.id = id
        self.severity = severity
        self.title = title
        self.explanation = explanation
        self.advice = advice
        safeFix = fix
    }
}
