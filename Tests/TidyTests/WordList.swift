/// A phrase that this project does not use, and what to write in its place.
///
/// The phrase is a regular expression that begins and ends at a word; upper and lower case are
/// the same.
struct UnusedPhrase: Sendable {
    let phrase: String
    let instead: String

    init(_ phrase: String, _ instead: String) {
        self.phrase = phrase
        self.instead = instead
    }

    /// Every phrase is precise, so that a real meaning ("a whole number", "broken pipe") needs no
    /// exception.
    static let all = [
        UnusedPhrase("(?:newest|nothing|anything|or|\\d+) whole", "intact"),
        UnusedPhrase("(?:is|are|was|were|be|stays?|still|found) whole(?! number)", "intact"),
        UnusedPhrase("(?:copies|slots?|blocks?|chunks?|twin|checkpoint) whole", "intact"),
        UnusedPhrase("(?:is|are|was|were|be|been) broken", "is damaged; is violated"),
        UnusedPhrase(
            "broken (?:files?|checkpoints?|blocks?|headers?|copy|copies|slots?|chunks?)",
            "damaged"),
        UnusedPhrase(
            "(?:field|header|superblock|block|record|flag|entry) (?:says|tells)", "records"),
        UnusedPhrase("(?:message|log|report|warning) (?:says|tells)", "reports; shows"),
        UnusedPhrase("says? so", "reports it"),
        UnusedPhrase("beside (?:a|the|that) (?:\\w+ )?writers?", "while a writer is running"),
        // Not the setting of `pccheck bench --fio-settings`.
        UnusedPhrase("(?<![-|])quick(?:er|est)?(?![-|]| \\(default\\))", "fast"),
        UnusedPhrase("to be had|(?:cannot|can|could(?: not)?) be had", "available"),
        UnusedPhrase("for want of", "not enough; because … is missing"),
        UnusedPhrase("(?:is|are|was|were|been) tried (?:on|with|out)", "is tested"),
        UnusedPhrase("mend(?:s|ed|ing)?", "fix"),
        UnusedPhrase("control groups?", "cgroup"),
        UnusedPhrase("(?:lies?|lying|lay) at", "is at"),
        UnusedPhrase("(?:go|goes|going|went|gone) on", "continue; resume"),
        UnusedPhrase("by (?:itself|themselves)", "alone; automatically"),
        UnusedPhrase("whoever", "the actor by its name"),
        UnusedPhrase("what is neither", "anything else"),
        UnusedPhrase("what is there", "the thing by its name"),
        UnusedPhrase("(?:is|are|was|were) told", "gets; receives; you pass"),
        UnusedPhrase("nobody knows", "it is unknown"),
        UnusedPhrase("anew", "again"),
        UnusedPhrase("at hand", "available"),
        UnusedPhrase("stands? back", "pause"),
        UnusedPhrase("hand(?:s|ed)? (?:\\w+ )?over", "pass"),
        UnusedPhrase("for ever", "permanently; endlessly"),
        UnusedPhrase("no good", "damaged"),
    ]
}
