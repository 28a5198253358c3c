//! RSS and Atom: builds that broke or were mended, and evaluations that failed.
//!
//! Invariant: the same news make the same bytes, so that whoever has them is told so.

use super::xml::{escape, shorten};
use crate::db::jobsets;
use crate::db::web::feeds::{self, Changed, Failed};
use crate::model::spec::JobsetName;
use crate::model::status::Weather;
use crate::model::time::Time;
use crate::web::context::Context;
use crate::web::date;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// As in Cuirass.
const ITEMS: usize = 100;

/// Characters of an error that are told: its first lines; the rest is behind the link.
const ERROR: usize = 1000;

const RSS: &str = "application/rss+xml;charset=utf-8";
const ATOM: &str = "application/atom+xml;charset=utf-8";

struct Item {
    time: Time,
    title: String,
    /// Below the base.
    path: String,
    error: Option<String>,
}

impl From<Changed> for Item {
    fn from(changed: Changed) -> Self {
        let Changed { build, jobset, job, system, weather, stoptime, error } = changed;
        let word = if weather == Weather::NewSuccess { "fixed" } else { "broken" };
        Self {
            time: stoptime,
            title: format!("Build {job} ({system}) on {jobset} is {word}."),
            path: format!("/build/{build}/details"),
            error,
        }
    }
}

impl From<Failed> for Item {
    fn from(failed: Failed) -> Self {
        let Failed { evaluation, jobset, evaltime, error } = failed;
        Self {
            time: evaltime,
            title: format!("Evaluation {evaluation} of {jobset} failed."),
            path: format!("/eval/{evaluation}"),
            error,
        }
    }
}

impl Item {
    /// Other than the link, it is another one when the same build breaks again.
    fn name(&self, base: &str) -> String {
        format!("{base}{}#{}", self.path, self.time)
    }

    /// As HTML.
    fn description(&self, base: &str) -> String {
        let mut html = format!(
            "<p><a href=\"{}\">{}</a></p>",
            escape(&format!("{base}{}", self.path)),
            escape(&self.title)
        );
        if let Some(error) = &self.error {
            html.push_str(&format!("<pre>{}</pre>", escape(&shorten(error, ERROR))));
        }
        html
    }
}

/// GET `/events/rss?specification=NAME`, or of all.
pub(super) fn rss(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    answer(context, request, request.query.get("specification"), Feed::rss)
}

/// GET `/events/atom?specification=NAME`, or of all.
pub(super) fn atom(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    answer(context, request, request.query.get("specification"), Feed::atom)
}

/// GET `/jobset/NAME/rss`.
pub(super) fn rss_of(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    answer(context, request, Some(captures.get("name")), Feed::rss)
}

/// GET `/jobset/NAME/atom`.
pub(super) fn atom_of(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    answer(context, request, Some(captures.get("name")), Feed::atom)
}

fn answer(
    context: &mut Context,
    request: &Request,
    jobset: Option<&str>,
    write: fn(&Feed) -> Response,
) -> Result<Response, Failure> {
    let base = base(context, request);
    let jobset = jobset.map(|name| known(context, name)).transpose()?;
    let books = context.books()?;
    let changed = feeds::changed(books, jobset.as_ref(), ITEMS)?;
    let failed = feeds::failed(books, jobset.as_ref(), ITEMS)?;
    let mut items: Vec<Item> =
        changed.into_iter().map(Item::from).chain(failed.into_iter().map(Item::from)).collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.time));
    items.truncate(ITEMS);
    let updated = items.first().map(|item| item.time);
    let response = write(&Feed { base, jobset, items });
    Ok(match updated {
        Some(time) => response.with("Last-Modified", date::http(time)),
        None => response,
    })
}

fn known(context: &mut Context, name: &str) -> Result<JobsetName, Failure> {
    let missing = || Failure::missing(format!("There is no jobset {name:?}."));
    let jobset = JobsetName::new(name).ok_or_else(missing)?;
    jobsets::get(context.books()?, &jobset)?.ok_or_else(missing)?;
    Ok(jobset)
}

/// What links begin with: readers have no page that they could be relative to.
fn base(context: &Context, request: &Request) -> String {
    let config = &context.shared.config;
    if let Some(url) = &config.parameters.url {
        return url.clone();
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    let host = request.header("host").filter(|host| !host.is_empty() && host.chars().all(is_plain));
    let scheme = if request.secure { "https" } else { "http" };
    format!("{scheme}://{}", host.unwrap_or(&config.listen))
}

struct Feed {
    base: String,
    jobset: Option<JobsetName>,
    items: Vec<Item>,
}

impl Feed {
    fn title(&self) -> String {
        match &self.jobset {
            Some(jobset) => format!("Gorget: {jobset}"),
            None => "Gorget".to_owned(),
        }
    }

    fn about(&self) -> String {
        let of = match &self.jobset {
            Some(jobset) => format!("of {jobset}"),
            None => "of all jobsets".to_owned(),
        };
        format!("Builds {of} that broke or were fixed, and evaluations that failed.")
    }

    /// Where people read more.
    fn home(&self) -> String {
        match &self.jobset {
            Some(jobset) => format!("{}/jobset/{}", self.base, component(jobset.as_str())),
            None => format!("{}/", self.base),
        }
    }

    fn own(&self, kind: &str) -> String {
        match &self.jobset {
            Some(jobset) => {
                format!("{}/jobset/{}/{kind}", self.base, component(jobset.as_str()))
            }
            None => format!("{}/events/{kind}", self.base),
        }
    }

    /// When the newest of the news was made.
    fn updated(&self) -> Time {
        self.items.first().map_or(Time(0), |item| item.time)
    }

    fn rss(&self) -> Response {
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
             <rss version=\"2.0\" xmlns:atom=\"http://www.w3.org/2005/Atom\">\n<channel>\n\
             <title>{}</title>\n<link>{}</link>\n<description>{}</description>\n\
             <atom:link href=\"{}\" rel=\"self\" type=\"application/rss+xml\"/>\n\
             <lastBuildDate>{}</lastBuildDate>\n",
            escape(&self.title()),
            escape(&self.home()),
            escape(&self.about()),
            escape(&self.own("rss")),
            date::http(self.updated()),
        );
        for item in &self.items {
            text.push_str(&format!(
                "<item>\n<guid isPermaLink=\"false\">{}</guid>\n<link>{}</link>\n<title>{}</title>\n\
                 <pubDate>{}</pubDate>\n<description>{}</description>\n</item>\n",
                escape(&item.name(&self.base)),
                escape(&format!("{}{}", self.base, item.path)),
                escape(&item.title),
                date::http(item.time),
                escape(&item.description(&self.base)),
            ));
        }
        text.push_str("</channel>\n</rss>\n");
        Response::bytes(200, RSS, text)
    }

    fn atom(&self) -> Response {
        let own = escape(&self.own("atom"));
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<feed xmlns=\"http://www.w3.org/2005/Atom\">\n\
             <id>{own}</id>\n<title>{}</title>\n<subtitle>{}</subtitle>\n\
             <author><name>Gorget</name></author>\n<link rel=\"self\" href=\"{own}\"/>\n\
             <link rel=\"alternate\" type=\"text/html\" href=\"{}\"/>\n<updated>{}</updated>\n",
            escape(&self.title()),
            escape(&self.about()),
            escape(&self.home()),
            date::atom(self.updated()),
        );
        for item in &self.items {
            text.push_str(&format!(
                "<entry>\n<id>{}</id>\n<title>{}</title>\n<link href=\"{}\"/>\n<updated>{}</updated>\n\
                 <content type=\"html\">{}</content>\n</entry>\n",
                escape(&item.name(&self.base)),
                escape(&item.title),
                escape(&format!("{}{}", self.base, item.path)),
                date::atom(item.time),
                escape(&item.description(&self.base)),
            ));
        }
        text.push_str("</feed>\n");
        Response::bytes(200, ATOM, text)
    }
}
