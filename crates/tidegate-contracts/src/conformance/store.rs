use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use super::{Verdict, done, must};
use crate::store::{ObjectName, Store, StoreError, StoreExt};

/// Checks the contract of [`Store`]. `open` gives the store of that name, shared by all who open it.
///
/// # Errors
/// The first promise that was broken.
pub async fn store(open: &dyn Fn(&str) -> Arc<dyn Store>) -> Verdict {
    whole_objects(&*open("objects")).await?;
    immutable_objects(&*open("immutable")).await?;
    one_winner(&*open("race"), &*open("race")).await?;
    whole_or_nothing_to_readers(&*open("readers"), &*open("readers")).await?;
    listing(&*open("listing")).await?;
    long_listing(&*open("long-listing")).await?;
    dropped_calls(&*open("dropped")).await?;
    reopened(open).await
}

fn name(text: &str) -> Result<ObjectName, String> {
    done(ObjectName::new(text), "conformance uses good names")
}

fn is_not_found<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::NotFound(_)))
}

async fn whole_objects(store: &dyn Store) -> Verdict {
    let sizes = [0_usize, 1, 4096, (1 << 20) + 7];
    for size in sizes {
        let name = name(&format!("whole/A_b-c.{size}"))?;
        let body: Bytes = (0..size).map(|i| (i % 251) as u8).collect();
        let absent = "an object that was never put is not found";
        must(is_not_found(&store.head(&name).await), absent)?;
        must(is_not_found(&store.get(&name, 10).await), absent)?;
        must(is_not_found(&store.get_range(&name, 0..1).await), absent)?;
        done(store.put_new(&name, body.clone()).await, "an object can be put")?;
        let info = done(store.head(&name).await, "an object is seen as soon as it was put")?;
        must(
            info.name == name && info.bytes == size as u64,
            "head tells name and length",
        )?;
        let limit = size as u64;
        let got = done(store.get(&name, limit).await, "an object of exactly the limit is read")?;
        must(got == body, "what is read is what was put")?;
        // What the room held, and whether it is large enough, does not show.
        for room in [vec![7; size / 2], vec![7; size + 9]] {
            let got = done(store.get_in(&name, limit, room).await, "an object is read into a room")?;
            must(got == body, "what is read into a room is what was put")?;
        }
        if size > 0 {
            let refused = matches!(
                store.get(&name, limit - 1).await,
                Err(StoreError::TooLarge { bytes, limit: l, .. }) if bytes == limit && l == limit - 1
            );
            must(refused, "an object above the limit is `TooLarge`, with both numbers")?;
        }
        for (from, to) in [
            (0, limit),
            (0, limit + 9),
            (limit / 3, limit / 2),
            (limit, limit + 1),
            (limit + 5, u64::MAX),
        ] {
            let part = done(store.get_range(&name, from..to).await, "any range of an object is read")?;
            let inside = |at: u64| usize::try_from(at).map_or(size, |at| at.min(size));
            must(
                Some(&part[..]) == body.get(inside(from)..inside(to)),
                "a range ends with the object, and behind it is empty",
            )?;
        }
    }
    Ok(())
}

async fn immutable_objects(store: &dyn Store) -> Verdict {
    let name = name("kept")?;
    let body = Bytes::from_static(b"first");
    done(store.put_new(&name, body.clone()).await, "an object can be put")?;
    for other in [&b"first"[..], b"second", b""] {
        let second = store.put_new(&name, Bytes::copy_from_slice(other)).await;
        must(
            matches!(second, Err(StoreError::AlreadyExists(ref there)) if *there == name),
            "a second put is `AlreadyExists`, also with the same bytes",
        )?;
    }
    must(
        done(store.get(&name, 100).await, "an object is read")? == body,
        "a refused put changes nothing",
    )?;
    done(
        store.put_same(&name, body).await,
        "the same bytes may be put by `put_same`",
    )?;
    let other = store.put_same(&name, Bytes::from_static(b"firsT")).await;
    must(
        matches!(other, Err(StoreError::AlreadyExists(_))),
        "`put_same` refuses other bytes",
    )?;
    let longer = store.put_same(&name, Bytes::from_static(b"firs")).await;
    must(
        matches!(longer, Err(StoreError::AlreadyExists(_))),
        "`put_same` refuses a beginning",
    )?;

    done(store.delete(&name).await, "an object can be deleted")?;
    must(
        is_not_found(&store.get(&name, 100).await),
        "a deleted object is not found",
    )?;
    done(store.delete(&name).await, "deleting what is gone succeeds")?;
    done(
        store.delete(&self::name("never/was")?).await,
        "deleting what never was succeeds",
    )
}

async fn one_winner(first: &dyn Store, second: &dyn Store) -> Verdict {
    for round in 0..20 {
        let name = name(&format!("race/{round}"))?;
        let bodies: Vec<Bytes> = (0..8_u8).map(|i| vec![i; 10_000 + usize::from(i)].into()).collect();
        let puts = bodies.iter().enumerate().map(|(i, body)| {
            let store = if i % 2 == 0 { first } else { second };
            store.put_new(&name, body.clone())
        });
        let results = join_all(puts).await;
        let winners: Vec<usize> = (0..bodies.len())
            .filter(|i| results.get(*i).is_some_and(Result::is_ok))
            .collect();
        let losers = results
            .iter()
            .filter(|r| matches!(r, Err(StoreError::AlreadyExists(_))))
            .count();
        must(
            winners.len() == 1 && losers == bodies.len() - 1,
            "of several concurrent puts one succeeds and all others see `AlreadyExists`",
        )?;
        let got = done(second.get(&name, 1 << 20).await, "the winner's object is read")?;
        must(
            winners.first().and_then(|i| bodies.get(*i)) == Some(&got),
            "the object is the winner's",
        )?;
    }
    Ok(())
}

async fn whole_or_nothing_to_readers(writer: &dyn Store, reader: &dyn Store) -> Verdict {
    for round in 0..8 {
        let name = name(&format!("readers/{round}"))?;
        let body = Bytes::from(vec![7_u8; 3 << 20]);
        let put = writer.put_new(&name, body.clone());
        let read = async {
            for _ in 0..10_000 {
                let got = match reader.get(&name, 4 << 20).await {
                    Err(StoreError::NotFound(_)) => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    other => done(other, "an object is read while others are put")?,
                };
                let listed = done(
                    reader.list("readers/", None).await,
                    "a store is listed while it is written",
                )?;
                must(
                    listed
                        .iter()
                        .any(|info| info.name == name && info.bytes == body.len() as u64),
                    "what was read is listed, with its whole length",
                )?;
                return must(got == body, "a reader sees a whole object or none");
            }
            Ok(())
        };
        let (put, read) = futures::join!(put, read);
        done(put, "an object can be put while it is read")?;
        read?;
    }
    Ok(())
}

async fn listing(store: &dyn Store) -> Verdict {
    let mut names = Vec::new();
    // The order is that of bytes: `-` and `.` come before `/`, capitals before small letters.
    for text in [
        "a-b", "a.b", "a/0", "a/B", "a/b-1", "a/b/1", "a/b/2", "a0", "ab", "b", "A", "_",
    ] {
        let name = name(text)?;
        done(
            store.put_new(&name, Bytes::copy_from_slice(text.as_bytes())).await,
            "an object can be put",
        )?;
        names.push(name);
    }
    names.sort();
    let prefixes = [
        "", "a", "a/", "a/b", "a/b/", "a/b-", "a/b/1", "a.", "b", "c", "a/b/1/", "/", "..", "a//", "é",
    ];
    for prefix in prefixes {
        for after in names.iter().map(Some).chain([None]) {
            let listed = done(store.list(prefix, after).await, "a store is listed")?;
            let expected: Vec<&ObjectName> = names
                .iter()
                .filter(|name| name.as_str().starts_with(prefix) && after.is_none_or(|after| *name > after))
                .collect();
            must(
                listed.iter().map(|info| &info.name).eq(expected),
                &format!("a listing of `{prefix}` is complete, sorted by bytes and begins behind `after`"),
            )?;
            must(
                listed.iter().all(|info| info.bytes == info.name.as_str().len() as u64),
                "a listing tells lengths",
            )?;
        }
    }
    let between = name("a/b/10")?;
    let listed = done(store.list("a/b", Some(&between)).await, "`after` need not be there")?;
    must(
        listed.iter().map(|info| info.name.as_str()).eq(["a/b/2"]),
        "a listing begins behind a name that is not there",
    )
}

async fn long_listing(store: &dyn Store) -> Verdict {
    let count = 1003;
    for i in 0..count {
        let name = name(&format!("many/{}/{i:05}", i % 3))?;
        done(store.put_new(&name, Bytes::new()).await, "an object can be put")?;
    }
    let page = done(store.list("many/", None).await, "a store is listed")?;
    must(
        page.len() == 1000,
        "a page has at most 1,000 objects, and that many when there are more",
    )?;
    let all = done(store.list_all("many/", 10_000).await, "all pages are listed")?;
    must(
        all.len() == count && all.is_sorted_by(|a, b| a.name < b.name),
        "pages join without gap or repetition",
    )
}

async fn dropped_calls(store: &dyn Store) -> Verdict {
    let body = Bytes::from(vec![3_u8; 2 << 20]);
    for polls in 0..6_u32 {
        let name = name(&format!("dropped/{polls}"))?;
        let mut put = Box::pin(store.put_new(&name, body.clone()));
        for _ in 0..polls {
            if futures::poll!(put.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(put);
        match store.get(&name, 4 << 20).await {
            Err(StoreError::NotFound(_)) => {}
            Ok(got) => must(got == body, "a dropped put leaves the whole object or none")?,
            Err(error) => {
                return Err(format!(
                    "broken: an object of a dropped put is read or not found: {error}"
                ));
            }
        }
        done(
            store.put_same(&name, body.clone()).await,
            "a dropped put can be repeated",
        )?;
    }
    Ok(())
}

async fn reopened(open: &dyn Fn(&str) -> Arc<dyn Store>) -> Verdict {
    let name = name("deep/er/object")?;
    // A JSON document: a store of messages holds nothing else for good.
    let body = Bytes::from_static(br#"{"still": "here"}"#);
    done(
        open("reopened").put_new(&name, body.clone()).await,
        "an object can be put",
    )?;
    let got = done(open("reopened").get(&name, 100).await, "an object survives a restart")?;
    must(got == body, "an object survives a restart unchanged")?;
    must(
        is_not_found(&open("reopened-other").get(&name, 100).await),
        "stores of other names are other stores",
    )
}
