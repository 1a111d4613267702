public import CPCCheck
internal import CheckpointFormat
internal import CheckpointWriter

// pcc_writer_begin_attempt, pcc_writer_decide: what the ranks of a job agreed on.

@c @implementation
public func pcc_writer_begin_attempt(
    _ writer: OpaquePointer?, _ attempt: UnsafePointer<pcc_attempt>?,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let writer = try OpenWriter.of(writer).writer
        let given = try PCCheckC.options(attempt, default: pcc_attempt(), name: "pcc_attempt")
        var attempt = GroupAttempt(number: given.attempt)
        if given.has_base != 0 {
            attempt.base = GroupCheckpointName(
                attempt: given.base_attempt, step: given.base_step)
            attempt.baseSequence = SequenceNumber(rawValue: given.base_sequence)
        }
        let complete = try array(
            given.complete_sequences, given.complete_count, "complete_sequences")
        attempt.completeSequences = Set(complete.map { SequenceNumber(rawValue: $0) })
        try writer.beginAttempt(attempt)
    }
}

@c @implementation
public func pcc_writer_decide(
    _ writer: OpaquePointer?, _ sequence: UInt64, _ is_complete: UInt32,
    _ error: UnsafeMutablePointer<pcc_error>?
) -> pcc_status {
    status(error) { () throws(CheckpointError) in
        let writer = try OpenWriter.of(writer).writer
        writer.decide(SequenceNumber(rawValue: sequence), isComplete: is_complete != 0)
    }
}
