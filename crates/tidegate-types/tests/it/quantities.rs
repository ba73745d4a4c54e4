//! Money, sizes, times and windows, as they are written and as they count.

use tidegate_types::quantity::{BytePrice, ByteRate, ByteSize, DailyWindow, HourPrice, Money, Seconds};

#[test]
fn money_reads_and_shows() {
    for (text, micro, shown) in [
        ("5 USD", 5_000_000, "5.00 USD"),
        ("0.08 USD", 80_000, "0.08 USD"),
        ("0.000123USD", 123, "0.000123 USD"),
    ] {
        let money: Money = text.parse().unwrap();
        assert_eq!((money.micro_usd, money.to_string().as_str()), (micro, shown));
    }
    for bad in [
        "5",
        "-1 USD",
        "1e3 USD",
        ".5 USD",
        "0.0000001 USD",
        "99999999999999999999 USD",
    ] {
        assert!(bad.parse::<Money>().is_err(), "{bad}");
    }
}

#[test]
fn prices_round_up_so_that_nothing_is_free() {
    let hour: HourPrice = "0.04 USD/h".parse().unwrap();
    assert_eq!(hour.for_seconds(1).micro_usd, 12);
    let gib: BytePrice = "0.09 USD/GiB".parse().unwrap();
    assert_eq!(
        (gib.for_bytes(1).micro_usd, gib.for_bytes(1 << 30).micro_usd),
        (1, 90_000)
    );
}

#[test]
fn sizes_and_times() {
    assert_eq!("1.5 GiB".parse(), Ok(ByteSize(3 << 29)));
    assert_eq!(ByteSize(3 << 29).to_string(), "1536 MiB");
    assert_eq!("2h".parse(), Ok(Seconds(7200)));
    assert!("2 GB".parse::<ByteSize>().is_err() && "h".parse::<Seconds>().is_err());
    assert_eq!("1.5 MiB/s".parse(), Ok(ByteRate(ByteSize(3 << 19))));
    assert_eq!(ByteRate(ByteSize(3 << 20)).to_string(), "3 MiB/s");
    assert!("20 Mbit/s".parse::<ByteRate>().is_err() && "20 MiB".parse::<ByteRate>().is_err());
}

#[test]
fn windows_open_every_day() {
    let at = |day: u64, hour: u64, minute: u64| (day * 24 + hour) * 3600 + minute * 60;
    let night: DailyWindow = "20:00-06:30".parse().unwrap();
    assert_eq!(night.to_string(), "20:00-06:30");
    for (now, left) in [
        (at(3, 19, 59), 60),
        (at(3, 20, 0), 0),
        (at(4, 6, 29) + 59, 0),
        (at(4, 6, 30), 13 * 3600 + 1800),
    ] {
        assert_eq!(night.opens_in(now), left, "{now}");
    }
    let day: DailyWindow = "06:30-20:00".parse().unwrap();
    for (now, left) in [(at(3, 6, 30), 0), (at(3, 20, 0), 10 * 3600 + 1800), (at(3, 6, 29), 60)] {
        assert_eq!(day.opens_in(now), left, "{now}");
    }
    for bad in [
        "20:00",
        "20:00-20:00",
        "24:00-06:00",
        "20:60-06:00",
        "2:00-06:00",
        "+1:00-06:00",
        "20:00-06:00 CET",
    ] {
        assert!(bad.parse::<DailyWindow>().is_err(), "{bad}");
    }
}
