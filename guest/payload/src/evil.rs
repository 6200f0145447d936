//! Misbehaviour on demand, for the cage's own tests.
use instar_abi::boot::BootPage;
/// Misbehaves in the way that the boot page's first parameter names.
pub fn dispatch(_boot: BootPage) -> ! {
    loop {}
}
