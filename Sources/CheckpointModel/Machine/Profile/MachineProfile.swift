/// What was measured of one machine, without the job that will run on it.
package struct MachineProfile: Equatable, Sendable {
    /// Writes of one size, so many at a time.
    package struct DevicePoint: Equatable, Sendable {
        package var writeByteCount: Int
        /// Writes under way at once.
        package var queueDepth: Int
        /// What something else moved to or from the device meanwhile.
        package var otherBytesPerSecond: Double
        /// What these writes reached.
        package var bytesPerSecond: MeasuredValues

        package init(
            writeByteCount: Int, queueDepth: Int, otherBytesPerSecond: Double = 0,
            bytesPerSecond: MeasuredValues
        ) {
            self.writeByteCount = writeByteCount
            self.queueDepth = queueDepth
            self.otherBytesPerSecond = otherBytesPerSecond
            self.bytesPerSecond = bytesPerSecond
        }
    }

    /// A codec on a sample of the state.
    package struct CodecPoint: Equatable, Sendable {
        package var codec: MachineCodec
        /// Bytes of payload that one worker compresses.
        package var bytesPerSecond: MeasuredValues
        /// Payload over stored bytes.
        package var compressionRatio: Double

        package init(
            codec: MachineCodec, bytesPerSecond: MeasuredValues, compressionRatio: Double
        ) {
            self.codec = codec
            self.bytesPerSecond = bytesPerSecond
            self.compressionRatio = compressionRatio
        }
    }

    /// What the writer itself reaches, without a codec: chunks change hands, copies and writes
    /// disturb each other, and writes pause for copies.
    package struct WriterPoint: Equatable, Sendable {
        package var chunkByteCount: Int
        package var writerWorkerCount: Int
        /// Bytes of payload over the time until durable, without call and commit.
        package var bytesPerSecond: MeasuredValues
        /// What leaves a pool that is full while more is copied into it; nil: as much as ever.
        package var crowdedBytesPerSecond: MeasuredValues?

        package init(
            chunkByteCount: Int, writerWorkerCount: Int, bytesPerSecond: MeasuredValues,
            crowdedBytesPerSecond: MeasuredValues? = nil
        ) {
            self.chunkByteCount = chunkByteCount
            self.writerWorkerCount = writerWorkerCount
            self.bytesPerSecond = bytesPerSecond
            self.crowdedBytesPerSecond = crowdedBytesPerSecond
        }
    }

    package var processorCount: Int
    package var device: [DevicePoint]
    /// By workers; empty: it reaches all that the stations can do.
    package var writer: [WriterPoint]
    /// One flush, after many writes that have ended.
    package var flushSeconds: MeasuredValues
    /// One block of metadata, and its flush.
    package var blockSeconds: MeasuredValues
    /// From `save` until durable, without the call, of a checkpoint with next to no payload.
    package var commitSeconds: MeasuredValues
    /// What is read and written at once: a copy moves each byte twice, and the device once.
    package var memoryBytesPerSecond: MeasuredValues
    /// Bytes of payload that one worker copies and digests, in one pass.
    package var digestBytesPerSecond: MeasuredValues
    /// `save` itself, without the copy.
    package var callSeconds: MeasuredValues
    package var codecs: [CodecPoint]

    package init(
        processorCount: Int, device: [DevicePoint], flushSeconds: MeasuredValues,
        blockSeconds: MeasuredValues, commitSeconds: MeasuredValues,
        memoryBytesPerSecond: MeasuredValues,
        digestBytesPerSecond: MeasuredValues, callSeconds: MeasuredValues,
        writer: [WriterPoint] = [], codecs: [CodecPoint] = []
    ) {
        self.processorCount = processorCount
        self.device = device
        self.writer = writer
        self.flushSeconds = flushSeconds
        self.blockSeconds = blockSeconds
        self.commitSeconds = commitSeconds
        self.memoryBytesPerSecond = memoryBytesPerSecond
        self.digestBytesPerSecond = digestBytesPerSecond
        self.callSeconds = callSeconds
        self.codecs = codecs
    }

    /// - Throws: when a number makes no sense, or something is missing.
    package func check() throws(TuningError) {
        try TuningError.check(
            processorCount, "the number of processors", in: TuningLimits.processorCount)
        guard TuningLimits.pointCount.contains(device.count), writer.count <= 64 else {
            throw TuningError(
                .notMeasured,
                "found \(device.count) points of the device and \(writer.count) of the writer, "
                    + "expected 1 to 1000, and 64 at most")
        }
        for point in device {
            try TuningError.checkChunk(point.writeByteCount, "a write of the device")
            try TuningError.check(point.queueDepth, "a queue depth", in: 1...65_536)
            try TuningError.check(
                point.otherBytesPerSecond, "the other load of the device",
                in: TuningLimits.otherBytesPerSecond)
            try point.bytesPerSecond.check(
                "the rate of the device", in: TuningLimits.bytesPerSecond)
        }
        for writer in writer {
            try TuningError.checkChunk(writer.chunkByteCount, "a chunk of the writer")
            try TuningError.check(
                writer.writerWorkerCount, "the writer workers", in: TuningLimits.workerCount)
            try writer.bytesPerSecond.check(
                "the rate of the writer", in: TuningLimits.bytesPerSecond)
            try writer.crowdedBytesPerSecond?.check(
                "the rate of the writer with a full pool", in: TuningLimits.bytesPerSecond)
        }
        try flushSeconds.check("the time of a flush", in: TuningLimits.shortSeconds)
        try blockSeconds.check("the time of a block", in: TuningLimits.shortSeconds)
        try commitSeconds.check("the time of a commit", in: TuningLimits.shortSeconds)
        try callSeconds.check("the time of a call", in: TuningLimits.shortSeconds)
        try memoryBytesPerSecond.check("the rate of memory", in: TuningLimits.bytesPerSecond)
        try digestBytesPerSecond.check(
            "the rate of the digest", in: TuningLimits.bytesPerSecond)
        guard Set(codecs.map(\.codec)).count == codecs.count else {
            throw TuningError(.outOfRange, "a codec is in the profile twice")
        }
        for point in codecs {
            guard point.codec != .none else {
                throw TuningError(.outOfRange, "the profile measures a codec that does nothing")
            }
            try point.bytesPerSecond.check("the rate of a codec", in: TuningLimits.bytesPerSecond)
            try TuningError.check(
                point.compressionRatio, "the ratio of a codec",
                in: TuningLimits.compressionRatio)
        }
    }

    /// A commit has two flushes, and the second one has little to do.
    var withFlushTwiceAsFast: MachineProfile {
        var other = self
        let commit = commitSeconds.meanLargest(of: 1)
        let saved = min(blockSeconds.meanLargest(of: 1), commit / 2)
        other.flushSeconds = flushSeconds.scaled(by: 0.5)
        other.blockSeconds = blockSeconds.scaled(by: 0.5)
        other.commitSeconds = commitSeconds.scaled(by: commit > 0 ? 1 - saved / commit : 1)
        return other
    }

    /// The same machine, measured another time: the samples of each quantity are drawn again.
    package func resampled(_ random: inout SeededRandom) -> MachineProfile {
        var other = self
        for index in device.indices {
            other.device[index].bytesPerSecond = device[index].bytesPerSecond.resampled(&random)
        }
        for index in codecs.indices {
            other.codecs[index].bytesPerSecond = codecs[index].bytesPerSecond.resampled(&random)
        }
        for index in writer.indices {
            other.writer[index].bytesPerSecond = writer[index].bytesPerSecond.resampled(&random)
            other.writer[index].crowdedBytesPerSecond =
                writer[index].crowdedBytesPerSecond?.resampled(&random)
        }
        other.flushSeconds = flushSeconds.resampled(&random)
        other.blockSeconds = blockSeconds.resampled(&random)
        other.commitSeconds = commitSeconds.resampled(&random)
        other.memoryBytesPerSecond = memoryBytesPerSecond.resampled(&random)
        other.digestBytesPerSecond = digestBytesPerSecond.resampled(&random)
        other.callSeconds = callSeconds.resampled(&random)
        return other
    }
}

/// A codec, by the names of the file format.
package enum MachineCodec: String, CaseIterable, Sendable {
    case none
    case zstd
    case planesZstd = "planes-zstd"
}
