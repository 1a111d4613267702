internal import ArgumentParser

extension ArgumentHelp {
    /// The help of an option whose value has a name.
    static func of(_ valueName: String, _ abstract: String) -> ArgumentHelp {
        ArgumentHelp(abstract, valueName: valueName)
    }
}
