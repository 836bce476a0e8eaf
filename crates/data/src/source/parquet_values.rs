//! Values of a Parquet file as JSON: what has no place there becomes the text that Python prints.

use chrono::{DateTime, Duration, NaiveDate, NaiveTime};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit};
use parquet::data_type::Decimal;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

/// The fields of a row, whose columns are those of `schema`.
pub(super) fn object(row: &Row, schema: &Type) -> Map<String, Value> {
    row.get_column_iter()
        // A struct has every key that any row has: null is how the others lack it.
        .filter(|(_, field)| !matches!(field, Field::Null))
        .filter_map(|(key, field)| Some((key.clone(), value(field, child(schema, key))?)))
        .collect()
}

/// `None` for bytes that are no text.
fn value(field: &Field, column: Option<&Type>) -> Option<Value> {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => long(*value, column),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => float(f64::from(*value)),
        Field::Float(value) => float(f64::from(*value)),
        Field::Double(value) => float(*value),
        Field::Decimal(value) => decimal(value).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => return self::bytes(bytes.data(), column),
        Field::Date(days) => date(*days),
        Field::TimeMillis(time) => time_of_day(i64::from(*time) * 1_000),
        Field::TimeMicros(time) => time_of_day(*time),
        Field::TimestampMillis(time) => timestamp(time.checked_mul(1_000), is_utc(column)),
        Field::TimestampMicros(time) => timestamp(Some(*time), is_utc(column)),
        Field::Group(row) => match column {
            Some(column) if !column.is_primitive() => Value::Object(object(row, column)),
            _ => return None,
        },
        Field::ListInternal(list) => {
            let elements = list.elements().iter();
            let shown = elements.map(|field| value(field, element(column?, field)));
            shown.map(|value| value.unwrap_or_default()).collect()
        }
        Field::MapInternal(map) => {
            let entries = column.and_then(|column| column_at(column, 0));
            let (keys, values) = match entries {
                Some(entries) => (column_at(entries, 0), column_at(entries, 1)),
                None => (None, None),
            };
            let pairs = map.entries().iter().filter_map(|(key, item)| {
                let key = match value(key, keys)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                Some((key, value(item, values)?))
            });
            Value::Object(pairs.collect())
        }
    })
}

fn child<'a>(schema: &'a Type, name: &str) -> Option<&'a Type> {
    let fields = schema.is_group().then(|| schema.get_fields())?;
    let field = fields.iter().find(|field| field.name() == name)?;
    Some(field)
}

fn column_at(column: &Type, index: usize) -> Option<&Type> {
    let fields = column.is_group().then(|| column.get_fields())?;
    Some(fields.get(index)?)
}

/// The type of a list's elements, one of which is `field`: old lists repeat the element itself,
/// others a group around it.
fn element<'a>(column: &'a Type, field: &Field) -> Option<&'a Type> {
    if column.get_basic_info().converted_type() != ConvertedType::LIST {
        return Some(column);
    }
    let repeated = column_at(column, 0)?;
    let Some(inner) = column_at(repeated, 0) else {
        return Some(repeated);
    };
    let is_itself = |row: &Row| {
        let mut names = row.get_column_iter().map(|(name, _)| name);
        names.all(|name| child(repeated, name).is_some())
            && row.len() == repeated.get_fields().len()
    };
    match field {
        Field::Group(row) if is_itself(row) && !fits(inner, row) => Some(repeated),
        _ => Some(inner),
    }
}

fn fits(column: &Type, row: &Row) -> bool {
    let mut names = row.get_column_iter().map(|(name, _)| name);
    names.all(|name| child(column, name).is_some())
}

/// Times in nanoseconds are younger than the reader, which gives them as numbers.
fn long(value: i64, column: Option<&Type>) -> Value {
    let logical = column.and_then(|column| column.get_basic_info().logical_type_ref());
    match logical {
        Some(LogicalType::Timestamp(kind)) if kind.unit == TimeUnit::NANOS => {
            timestamp(Some(value.div_euclid(1_000)), kind.is_adjusted_to_u_t_c)
        }
        Some(LogicalType::Time(kind)) if kind.unit == TimeUnit::NANOS => {
            time_of_day(value.div_euclid(1_000))
        }
        _ => value.into(),
    }
}

fn is_utc(column: Option<&Type>) -> bool {
    let logical = column.and_then(|column| column.get_basic_info().logical_type_ref());
    match logical {
        Some(LogicalType::Timestamp(kind)) => kind.is_adjusted_to_u_t_c,
        _ => false,
    }
}

/// As `datetime.isoformat` writes it.
fn timestamp(micros: Option<i64>, is_utc: bool) -> Value {
    let Some(time) = micros.and_then(DateTime::from_timestamp_micros) else {
        return Value::Null;
    };
    let mut text = time.format("%Y-%m-%dT%H:%M:%S").to_string();
    push_micros(&mut text, time.timestamp_subsec_micros());
    if is_utc {
        text.push_str("+00:00");
    }
    text.into()
}

fn date(days: i32) -> Value {
    let date = Duration::try_days(days.into())
        .and_then(|days| NaiveDate::default().checked_add_signed(days));
    date.map_or(Value::Null, |date| date.to_string().into())
}

fn time_of_day(micros: i64) -> Value {
    let seconds = u32::try_from(micros.div_euclid(1_000_000)).ok();
    let time =
        seconds.and_then(|seconds| NaiveTime::from_num_seconds_from_midnight_opt(seconds, 0));
    let Some(time) = time else {
        return Value::Null;
    };
    let mut text = time.format("%H:%M:%S").to_string();
    push_micros(&mut text, micros.rem_euclid(1_000_000) as u32);
    text.into()
}

fn push_micros(text: &mut String, micros: u32) {
    if micros > 0 {
        text.push_str(&format!(".{micros:06}"));
    }
}

/// A decimal number, digit by digit: a float would not hold it.
fn decimal(value: &Decimal) -> String {
    let bytes = value.data();
    let is_negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let mut magnitude = bytes.to_vec();
    if is_negative {
        negate(&mut magnitude);
    }
    let mut digits = Vec::new();
    while magnitude.iter().any(|byte| *byte != 0) {
        digits.push(b'0' + divide_by_ten(&mut magnitude));
    }
    // `is_readable` leaves other scales out.
    let scale = value.scale().max(0) as usize;
    while digits.len() <= scale {
        digits.push(b'0');
    }
    digits.reverse();
    let mut text: String = digits.into_iter().map(char::from).collect();
    if scale > 0 {
        text.insert(text.len() - scale, '.');
    }
    match is_negative {
        true => format!("-{text}"),
        false => text,
    }
}

/// Two's complement, highest byte first.
fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        let (sum, overflow) = (!*byte).overflowing_add(u8::from(carry));
        *byte = sum;
        carry = overflow;
    }
}

/// Divides, and gives the remainder.
fn divide_by_ten(bytes: &mut [u8]) -> u8 {
    let mut rest = 0u32;
    for byte in bytes {
        let part = rest << 8 | u32::from(*byte);
        *byte = (part / 10) as u8;
        rest = part % 10;
    }
    rest as u8
}

fn bytes(bytes: &[u8], column: Option<&Type>) -> Option<Value> {
    let logical = column.and_then(|column| column.get_basic_info().logical_type_ref());
    if logical == Some(&LogicalType::Uuid) {
        let hex = crate::hex(bytes);
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
        let parts: Option<Vec<&str>> = parts.into_iter().map(|part| hex.get(part)).collect();
        return Some(parts?.join("-").into());
    }
    std::str::from_utf8(bytes).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::ByteArray;

    /// The values are Python's: `datetime.isoformat`, `str(Decimal)`.
    #[test]
    fn times_and_decimals_are_written_as_python_does() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(-719_162), "0001-01-01");
        assert_eq!(date(i32::MAX), Value::Null);
        let at = |micros, is_utc| timestamp(Some(micros), is_utc);
        assert_eq!(
            at(1_681_000_000_123_456, false),
            "2023-04-09T00:26:40.123456"
        );
        assert_eq!(at(1_681_000_000_000_000, true), "2023-04-09T00:26:40+00:00");
        assert_eq!(at(-1, false), "1969-12-31T23:59:59.999999");
        assert_eq!(at(i64::MAX, false), Value::Null);
        assert_eq!(time_of_day(3_723_000_001), "01:02:03.000001");
        assert_eq!(time_of_day(86_400_000_000), Value::Null);
        assert_eq!(time_of_day(-1), Value::Null);
        let bytes = |bytes: &[u8], scale| {
            decimal(&Decimal::from_bytes(
                ByteArray::from(bytes.to_vec()),
                76,
                scale,
            ))
        };
        assert_eq!(decimal(&Decimal::from_i32(-5, 9, 2)), "-0.05");
        assert_eq!(decimal(&Decimal::from_i64(1_234_500, 18, 4)), "123.4500");
        assert_eq!(
            decimal(&Decimal::from_i64(i64::MIN, 19, 0)),
            "-9223372036854775808"
        );
        assert_eq!(
            bytes(&[0x01, 0, 0, 0, 0, 0, 0, 0, 0], 0),
            "18446744073709551616"
        );
        assert_eq!(bytes(&[0xff], 3), "-0.001");
        assert_eq!(bytes(&[], 0), "0");
    }
}
