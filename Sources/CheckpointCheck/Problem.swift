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
    /// What pcfsck may do about it.
    public struct Fix: Hashable, Sendable {
        public enum Class: String, Hashable, Sendable, CaseIterable {
            /// `-p`: recovery decides the same before, during and after it.
            case safe
            /// `-y`: it has one right answer, and never chooses between data.
            case full
            /// `-y` on a terminal, once the question was answered with yes.
            case asked
        }

        public let `class`: Class
        /// A few words.
        public let action: String
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
    /// nil: nothing that pcfsck writes would help.
    public let fix: Fix?

    init(
        _ id: String, _ severity: Severity, _ title: String, _ explanation: String,
        _ advice: String, _ fixClass: Fix.Class? = nil, _ action: String = ""
    ) {
        self.id = id
        self.severity = severity
        self.title = title
        self.explanation = explanation
        self.advice = advice
        fix = fixClass.map { Fix(class: $0, action: action) }
    }
}

extension Problem.Fix: CustomStringConvertible {
    /// `safe: rewrite from its twin`
    public var description: String { "\(self.class.rawValue): \(action)" }
}
