//! Picking the instance of a generic handler that fits an instruction's form.

/// Picks the instance of a generic for an address form: `by_address!(form, A => handler::<u32, Mem<A>>)`.
macro_rules! by_address {
    ($form:expr, $address:ident => $handler:expr) => {
        match $form {
            $crate::decode::form::AddressForm::Simple => {
                type $address = $crate::op::Simple;
                ($handler) as $crate::op::Handler
            }
            $crate::decode::form::AddressForm::Full => {
                type $address = $crate::op::Full;
                ($handler) as $crate::op::Handler
            }
            $crate::decode::form::AddressForm::Narrow => {
                type $address = $crate::op::Narrow;
                ($handler) as $crate::op::Handler
            }
        }
    };
}

/// Picks the instance of a generic for an operand size in bytes: `by_size!(size, W => handler::<W>)`.
macro_rules! by_size {
    ($size:expr, $word:ident => $handler:expr) => {
        match $size {
            1 => {
                type $word = u8;
                $handler
            }
            2 => {
                type $word = u16;
                $handler
            }
            4 => {
                type $word = u32;
                $handler
            }
            _ => {
                type $word = u64;
                $handler
            }
        }
    };
}

/// Like [`by_size`], for instructions without a byte form.
macro_rules! by_wide {
    ($size:expr, $word:ident => $handler:expr) => {
        match $size {
            2 => {
                type $word = u16;
                $handler
            }
            4 => {
                type $word = u32;
                $handler
            }
            _ => {
                type $word = u64;
                $handler
            }
        }
    };
}

pub(super) use {by_address, by_size, by_wide};
