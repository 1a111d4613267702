internal import FakeCUDA

/// How the stand-in driver behaves, and what it counts: fakecuda.h.
extension FakeDevices {
    /// How late each copy and each kernel begins.
    public static func delay(microseconds: ClosedRange<UInt32>) {
        fakecuda_set_delay_us(microseconds.lowerBound, microseconds.upperBound)
    }

    public static func limitRegistration(byteCount: UInt64) {
        fakecuda_set_register_limit(byteCount)
    }

    public static func setVersion(_ version: Int32) { fakecuda_set_version(version) }

    /// - Parameter name: of a function of the driver, or "copy".
    public static func fail(
        _ name: String, error: Int32, after count: Int = 0, isSticky: Bool = false
    ) {
        // Safe, here and below: the name lives through the call.
        unsafe fakecuda_fail(name, error, UInt32(count), isSticky ? 1 : 0)
    }

    public static func callCount(_ name: String) -> UInt64 { unsafe fakecuda_calls(name) }
    public static var bytesToHost: UInt64 { fakecuda_copied_bytes(0) }
    public static var bytesToDevice: UInt64 { fakecuda_copied_bytes(1) }
    public static var unpinnedCopyCount: UInt64 { fakecuda_unpinned_copies() }
    public static var registeredByteCount: UInt64 { fakecuda_registered_bytes() }
}
