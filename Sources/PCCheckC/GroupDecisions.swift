public import CPCCheck
internal import CheckpointFormat
internal import CheckpointGroup

// pcc_group_decide: where all ranks of a job continue.

@c @implementation
public func pcc_group_decide(
    _ reportsJSON: UnsafePointer<CChar>?,
    _ decisionJSON: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        // Safe: NULL or a place for a pointer.
        guard let decisionJSON = decisionJSON else { throw invalid("decision_json is NULL") }
        decisionJSON.pointee = nil
        let given = try GroupReportsReader(text(reportsJSON, "reports_json"))
        let decision = GroupSelection.decide(given.reports, rejected: given.rejected)
        decisionJSON.pointee = try copyForCaller(decision.json.text)
    }
}
