//! The memory functions that the compiler calls. Short lengths go through overlapping loads and stores that are
//! all loaded before the first store, so that one routine serves copies and moves; long ones through the
//! string instructions.
//!
//! Nothing in here may be written as a plain byte loop: the compiler would turn it into a call of itself.

use core::arch::asm;
use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_set1_epi8, _mm_storeu_si128};

/// Longest length that goes through loads and stores alone.
const SHORT_MAX: usize = 128;

/// Copies the first and the last `size_of::<T>()` bytes of `n`, which may overlap.
///
/// # Safety
/// `size_of::<T>() <= n <= 2 * size_of::<T>()`; `n` bytes are readable at `src` and writable at `dest`.
#[inline(always)]
unsafe fn both_ends<T: Copy>(dest: *mut u8, src: *const u8, n: usize) {
    let tail = n - size_of::<T>();
    // SAFETY: both accesses lie within the n bytes that the caller vouches for; unaligned is allowed for.
    unsafe {
        let first = src.cast::<T>().read_unaligned();
        let last = src.add(tail).cast::<T>().read_unaligned();
        dest.cast::<T>().write_unaligned(first);
        dest.add(tail).cast::<T>().write_unaligned(last);
    }
}

/// As [`both_ends`] for `16 * PIECES <= n <= 32 * PIECES`.
///
/// # Safety
/// As [`both_ends`].
#[inline(always)]
unsafe fn both_ends_wide<const PIECES: usize>(dest: *mut u8, src: *const u8, n: usize) {
    let tail = n - 16 * PIECES;
    // SAFETY: each piece lies within the n bytes that the caller vouches for.
    unsafe {
        let first: [__m128i; PIECES] = core::array::from_fn(|i| _mm_loadu_si128(src.add(16 * i).cast()));
        let last: [__m128i; PIECES] =
            core::array::from_fn(|i| _mm_loadu_si128(src.add(tail + 16 * i).cast()));
        for (i, piece) in first.into_iter().enumerate() {
            _mm_storeu_si128(dest.add(16 * i).cast(), piece);
        }
        for (i, piece) in last.into_iter().enumerate() {
            _mm_storeu_si128(dest.add(tail + 16 * i).cast(), piece);
        }
    }
}

/// Copies at most [`SHORT_MAX`] bytes; the ranges may overlap.
///
/// # Safety
/// `n` bytes are readable at `src` and writable at `dest`.
#[inline(always)]
unsafe fn copy_short(dest: *mut u8, src: *const u8, n: usize) {
    // SAFETY: each arm's helper gets an n that it allows; the caller vouches for the ranges.
    unsafe {
        match n {
            0 => {}
            1 => dest.write(src.read()),
            2..=3 => both_ends::<u16>(dest, src, n),
            4..=7 => both_ends::<u32>(dest, src, n),
            8..=15 => both_ends::<u64>(dest, src, n),
            16..=31 => both_ends_wide::<1>(dest, src, n),
            32..=63 => both_ends_wide::<2>(dest, src, n),
            _ => both_ends_wide::<4>(dest, src, n),
        }
    }
}

/// # Safety
/// That of C's function: `n` bytes readable at `src`, writable at `dest`, not overlapping.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    if n <= SHORT_MAX {
        // SAFETY: passed on from the caller.
        unsafe { copy_short(dest, src, n) };
    } else {
        // SAFETY: passed on from the caller; the direction flag is clear by the calling convention.
        unsafe {
            asm!("rep movsb", inout("rcx") n => _, inout("rdi") dest => _, inout("rsi") src => _,
                options(nostack, preserves_flags));
        }
    }
    dest
}

/// # Safety
/// That of C's function: `n` bytes readable at `src`, writable at `dest`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    if n <= SHORT_MAX {
        // SAFETY: passed on from the caller; copy_short allows overlap.
        unsafe { copy_short(dest, src, n) };
    } else if (dest as usize).wrapping_sub(src as usize) >= n {
        // SAFETY: dest is not within src .. src + n, so copying upwards never reads a byte it has written.
        unsafe {
            asm!("rep movsb", inout("rcx") n => _, inout("rdi") dest => _, inout("rsi") src => _,
                options(nostack, preserves_flags));
        }
    } else {
        // SAFETY: copying downwards in pieces that are loaded before they are stored; what is left at the
        // bottom is shorter than one piece and goes through copy_short.
        unsafe {
            let left = n % 32;
            asm!(
                "2:",
                "movups {a}, [{src} + {at} - 16]",
                "movups {b}, [{src} + {at} - 32]",
                "movups [{dest} + {at} - 16], {a}",
                "movups [{dest} + {at} - 32], {b}",
                "sub {at}, 32",
                "cmp {at}, {left}",
                "jne 2b",
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                src = in(reg) src,
                dest = in(reg) dest,
                at = inout(reg) n => _,
                left = in(reg) left,
                options(nostack),
            );
            copy_short(dest, src, left);
        }
    }
    dest
}

/// # Safety
/// That of C's function: `n` bytes writable at `dest`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(dest: *mut u8, value: i32, n: usize) -> *mut u8 {
    let [byte, ..] = value.to_le_bytes();
    let spread = u64::from_le_bytes([byte; 8]);
    // SAFETY: every store lies within the n bytes that the caller vouches for; the direction flag is clear.
    unsafe {
        match n {
            0 => {}
            1 => dest.write(byte),
            2..=3 => {
                dest.cast::<u16>().write_unaligned(u16::from_le_bytes([byte; 2]));
                dest.add(n - 2).cast::<u16>().write_unaligned(u16::from_le_bytes([byte; 2]));
            }
            4..=7 => {
                dest.cast::<u32>().write_unaligned(u32::from_le_bytes([byte; 4]));
                dest.add(n - 4).cast::<u32>().write_unaligned(u32::from_le_bytes([byte; 4]));
            }
            8..=15 => {
                dest.cast::<u64>().write_unaligned(spread);
                dest.add(n - 8).cast::<u64>().write_unaligned(spread);
            }
            16..=64 => {
                let wide = _mm_set1_epi8(i8::from_le_bytes([byte]));
                let inner = if n > 32 { 16 } else { 0 };
                _mm_storeu_si128(dest.cast(), wide);
                _mm_storeu_si128(dest.add(inner).cast(), wide);
                _mm_storeu_si128(dest.add(n - 16 - inner).cast(), wide);
                _mm_storeu_si128(dest.add(n - 16).cast(), wide);
            }
            _ => {
                asm!("rep stosb", inout("rcx") n => _, inout("rdi") dest => _, in("al") byte,
                    options(nostack, preserves_flags));
            }
        }
    }
    dest
}

/// # Safety
/// That of C's function: `n` bytes readable at both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut at = 0;
    // SAFETY: at + 8 <= n holds for the words, at < n for the bytes.
    unsafe {
        while n - at >= 8 {
            let left = a.add(at).cast::<u64>().read_unaligned().swap_bytes();
            let right = b.add(at).cast::<u64>().read_unaligned().swap_bytes();
            if left != right {
                return if left < right { -1 } else { 1 };
            }
            at += 8;
        }
        while at < n {
            let order = i32::from(a.add(at).read_volatile()) - i32::from(b.add(at).read_volatile());
            if order != 0 {
                return order;
            }
            at += 1;
        }
    }
    0
}

/// # Safety
/// As [`memcmp`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe { memcmp(a, b, n) }
}
