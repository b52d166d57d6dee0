//! The transcendental functions of finite numbers, as series in [`Wide`].
//!
//! Accuracy: the result before it is rounded to 64 bits is off by less than 2^-110, relatively, so that a
//! rounded one is wrong in its last place no more often than once in 2^40. (Vendors promise one unit in the
//! last place, and differ in it.) Arguments of the trigonometric functions are reduced by pi itself, not by
//! the 66 bits of it other processors have.

use super::wide::{Wide, reduce};

/// Sums `first + first * factor * c1 + first * factor^2 * c2 ...` until terms vanish; `step` makes of
/// `term * factor` the next term.
fn series(first: Wide, factor: Wide, step: impl Fn(Wide, u32) -> Wide) -> Wide {
    let mut sum = first;
    let mut term = first;
    for n in 1..200 {
        term = step(term.times(factor), n);
        if term.is_zero() || sum.exponent.saturating_sub(term.exponent) > 128 {
            break;
        }
        sum = sum.plus(term);
    }
    sum
}

/// `x + x^3/3 + x^5/5 ...`, or with alternating signs: the hyperbolic and the plain arc tangent.
fn odd_powers(x: Wide, alternating: bool) -> Wide {
    let square = x.times(x).with_sign(alternating);
    let mut sum = x;
    let mut power = x;
    for n in 1..200 {
        power = power.times(square);
        let term = power.over_integer(2 * n + 1);
        if term.is_zero() || sum.exponent.saturating_sub(term.exponent) > 128 {
            break;
        }
        sum = sum.plus(term);
    }
    sum
}

/// 2^x - 1, for `|x|` up to 1.
pub(super) fn exp2_minus_one(x: Wide) -> Wide {
    if x.exponent == 0 && x.significand == 1 << 127 {
        return if x.negative {
            Wide::ONE.scaled(-1).negated()
        } else {
            Wide::ONE
        };
    }
    let y = x.times(Wide::LN2);
    series(y, y, |term, n| term.over_integer(n + 1))
}

/// Logarithm to base 2 of `x`, which is positive.
pub(super) fn log2(x: Wide) -> Wide {
    // x = 2^power * m, with m between the square root of 1/2 and that of 2.
    let root = 0xb504_f333_f9de_6484 << 64;
    let power = x.exponent + i32::from(x.significand > root);
    let m = x.scaled(-power);
    let whole = Wide::integer(power);
    if m == Wide::ONE {
        return whole;
    }
    let ratio = m.minus(Wide::ONE).over(m.plus(Wide::ONE));
    let fraction = odd_powers(ratio, false).scaled(1).times(Wide::LOG2_E);
    whole.plus(fraction)
}

/// Logarithm to base 2 of `1 + x`, which is positive.
pub(super) fn log2_of_one_plus(x: Wide) -> Wide {
    if x.exponent >= -1 {
        return log2(Wide::ONE.plus(x));
    }
    let ratio = x.over(x.plus(Wide::integer(2)));
    odd_powers(ratio, false).scaled(1).times(Wide::LOG2_E)
}

/// The angle of the point (`x`, `y`), neither of them zero.
pub(super) fn arc_tangent(y: Wide, x: Wide) -> Wide {
    let (a, b) = (y.with_sign(false), x.with_sign(false));
    let swapped = a.cmp_magnitude(b).is_gt();
    let ratio = if swapped { b.over(a) } else { a.over(b) };
    // Above sqrt(2) - 1, by way of pi/4.
    let bound = Wide::new(-2, 0xd413_cccf_e779_9211 << 64);
    let mut angle = if ratio.cmp_magnitude(bound).is_gt() {
        let rest = ratio.minus(Wide::ONE).over(ratio.plus(Wide::ONE));
        odd_powers(rest, true).plus(Wide::PI.scaled(-2))
    } else {
        odd_powers(ratio, true)
    };
    if swapped {
        angle = Wide::PI.scaled(-1).minus(angle);
    }
    if x.negative {
        angle = Wide::PI.minus(angle);
    }
    angle.with_sign(y.negative)
}

/// Sine and cosine, for `|x|` below 2^63.
pub(super) fn sine_cosine(x: Wide) -> (Wide, Wide) {
    let (rest, turns) = reduce(x);
    let square = rest.times(rest).negated();
    let sine = if rest.is_zero() {
        rest
    } else {
        series(rest, square, |term, n| {
            term.over_integer(2 * n).over_integer(2 * n + 1)
        })
    };
    let cosine = series(Wide::ONE, square, |term, n| {
        term.over_integer(2 * n - 1).over_integer(2 * n)
    });
    let (sine, cosine) = match turns {
        0 => (sine, cosine),
        1 => (cosine, sine.negated()),
        2 => (sine.negated(), cosine.negated()),
        _ => (cosine.negated(), sine),
    };
    (sine.with_sign(sine.negative != x.negative), cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The register nearest to a number.
    fn register(value: f64) -> u128 {
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as u128 + 0x3fff - 0x3ff;
        let significand = u128::from(1 << 63 | bits << 11);
        u128::from(bits >> 63) << 79 | exponent << 64 | significand
    }

    fn number(value: f64) -> Wide {
        Wide::of(register(value))
    }

    fn near(value: Wide, expected: f64) {
        let difference = value.minus(number(expected));
        assert!(
            difference.is_zero() || difference.exponent < number(expected).exponent - 51,
            "{value:?} for {expected}"
        );
    }

    #[test]
    fn functions_agree_with_the_library_as_far_as_it_goes() {
        for n in 1..400 {
            let x = f64::from(n) * 0.01717;
            let (sine, cosine) = sine_cosine(number(x));
            near(sine, x.sin());
            near(cosine, x.cos());
            near(log2(number(x)), x.log2());
            near(arc_tangent(number(x), number(0.7)), x.atan2(0.7));
            near(arc_tangent(number(x), number(-0.7)), x.atan2(-0.7));
            let y = x / 8.0;
            near(
                log2_of_one_plus(number(y)),
                y.ln_1p() / std::f64::consts::LN_2,
            );
            near(
                exp2_minus_one(number(y)),
                (y * std::f64::consts::LN_2).exp_m1(),
            );
        }
    }

    #[test]
    fn identities_hold_to_110_bits() {
        for n in 1..200 {
            let x = number(f64::from(n) * 1234.5678);
            let (sine, cosine) = sine_cosine(x);
            let one = sine.times(sine).plus(cosine.times(cosine));
            let error = one.minus(Wide::ONE);
            assert!(error.is_zero() || error.exponent < -115, "{error:?}");
            // The logarithm and the exponential undo each other.
            let y = number(f64::from(n) * 0.004);
            let back = log2_of_one_plus(exp2_minus_one(y)).minus(y);
            assert!(
                back.is_zero() || back.exponent < y.exponent - 110,
                "{back:?}"
            );
            // The tangent of the angle is the ratio.
            let (sine, cosine) = sine_cosine(Wide::of(arc_tangent(y, Wide::ONE).round(0x37f).0));
            let error = sine.over(cosine).minus(y);
            assert!(
                error.is_zero() || error.exponent < y.exponent - 60,
                "{error:?}"
            );
        }
    }

    #[test]
    fn reduction_is_by_pi_itself() {
        // The register next to pi: its sine is what is left of pi, 0x1.8.. * 2^-64.
        let (sine, _) = sine_cosine(Wide::of(0x4000_c90f_daa2_2168_c235));
        let rest = Wide::PI.minus(Wide::of(0x4000_c90f_daa2_2168_c235));
        let error = sine.minus(rest);
        assert!(
            error.is_zero() || error.exponent < rest.exponent - 60,
            "{error:?}"
        );
        // sin(2^62) and sin(10^18), to 20 digits by an independent computation.
        near(
            sine_cosine(number(4_611_686_018_427_387_904.0)).0,
            -0.7029224436192089,
        );
        near(sine_cosine(number(1e18)).0, -0.9929693207404051);
    }
}
