"""The words of the simulated world: topics, headline styles, invented places.

A title joins one topic's phrases in one style's sentence. Phrases of a topic mean similar things in
different words, so that a reader of language sees more than a counter of words. All verbs stand in
their base form behind *will*, *to* or *could*, so any subject agrees with them.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """What a subcategory's headlines are made of; phrases are separated by `` / ``."""

    category: str
    subcategory: str
    who: str
    """Subjects."""
    do: str
    """What they do, in the base form."""
    things: str
    """What is talked about, in the plural."""


class Style(NamedTuple):
    """A way to word a headline, and how it draws readers of any taste."""

    name: str
    appeal: float
    """Added to the utility of every story in this style."""
    share: float
    """How often stories come in this style, relative to the others."""
    templates: tuple[str, ...]


CATEGORY_SHARES = {
    "news": 0.24,
    "sports": 0.24,
    "finance": 0.08,
    "foodanddrink": 0.07,
    "lifestyle": 0.07,
    "health": 0.06,
    "travel": 0.05,
    "technology": 0.05,
    "weather": 0.04,
    "movies": 0.03,
    "tv": 0.03,
    "music": 0.02,
    "autos": 0.02,
}
"""Share of stories; news and sports lead as they do in MIND."""
MIND_CATEGORY_SHARES = {
    "news": 0.30,
    "sports": 0.30,
    "finance": 0.06,
    "foodanddrink": 0.05,
    "lifestyle": 0.05,
    "weather": 0.04,
    "travel": 0.05,
    "autos": 0.03,
    "health": 0.03,
    "tv": 0.03,
    "technology": 0.02,
    "movies": 0.02,
    "music": 0.02,
}
"""Share of stories; the first six are MIND's own, the others share what is left."""

PLACES = (
    "Ashdale", "Linden Bay", "Port Corrie", "Marrow Hill", "Tessaly", "Quillfield", "Saint Orrin",
    "Brackwater", "Velden Park", "Dunmere", "East Hollin", "Copper Falls", "Nantwell",
    "Ivory Point", "Greywick", "Orsonville", "Thistle County", "Pinder Valley",
)  # fmt: skip
TIMES = (
    "this week", "this weekend", "tonight", "by Friday", "next month", "before winter", "on Monday",
    "this season", "after the holidays", "within days", "later this year", "on short notice",
)  # fmt: skip

TOWNS = tuple(
    start + end
    for start in (
        "Alder", "Amber", "Birch", "Clay", "Dray", "Elm", "Fen", "Gorse", "Harrow", "Juniper",
        "Kettle", "Lark", "Mill", "Otter", "Pebble", "Raven", "Sedge", "Tarn", "Umber", "Wren",
    )
    for end in (
        "bridge", "bury", "croft", "ford", "gate", "ham", "ley", "mouth", "stead", "ton", "wick",
        "worth",
    )
)  # fmt: skip
"""Datelines that tell two stories with the same headline apart."""

STYLES = (
    Style("report", 0.0, 0.22, (
        "{who} will {do} amid {things}",
        "{who} to {do} in {place}",
        "{who} could {do} {when} as {things} go on",
        "After {things}, {who} may {do}",
    )),
    Style("list", 0.6, 0.13, (
        "{n} {things} and {others} worth your time",
        "The {n} best {things} and {others} we found",
        "{n} {things} that fans of {others} keep sharing",
        "Ranked: {n} {things} everyone talks about {when}",
    )),
    Style("question", 0.1, 0.12, (
        "Why would {who} {do} {when}?",
        "Will {who} really {do} despite {things}?",
        "Could {who} {do}, and what about {things}?",
    )),
    Style("howto", -0.6, 0.09, (
        "How to make sense of {things} and {others}",
        "A beginner's guide to {things} and {others}",
        "How to talk about {things} with your family",
    )),
    Style("explainer", -0.4, 0.09, (
        "What to know about {things} and {others} {when}",
        "Explainer: where {things} stand if {who} should {do}",
        "Here is what we know about {things} and {others}",
    )),
    Style("breaking", 0.8, 0.10, (
        "Breaking: {who} to {do}",
        "Just in: {who} will {do} amid {things}",
        "Developing story: {who} about to {do}",
    )),
    Style("opinion", -0.8, 0.09, (
        "Opinion: {who} should never {do}",
        "Editorial: it is too early for {who} to {do}",
        "Letters: our readers on {things} and {others}",
    )),
    Style("photos", 0.4, 0.05, (
        "Photos: {things} and {others} as seen in {place}",
        "In pictures: {things} and {others} from around {place}",
    )),
    Style("shock", 1.0, 0.10, (
        "Nobody expected {who} to {do}",
        "{place} is stunned: {who} will {do}",
        "Shock and tears after {who} vowed to {do}",
        "Unbelievable: {who} will {do} after {things}",
    )),
    Style("digest", -1.0, 0.09, (
        "Weekly digest: {things}, {others} and other notes",
        "Minutes: the {place} panel on {things} and {others}",
        "Calendar: {things} and {others} in {place} {when}",
    )),
    Style("quote", 0.2, 0.02, (
        '"We will {do}," {who} told reporters in {place}',
        '"Time to {do}": {who} spoke up on {things}',
    )),
)  # fmt: skip

ABSTRACTS = (
    "The plan to {do} has been debated in {place} for some time.",
    "{who} had hinted at it before. Now {things} are on the table.",
    "People who follow {things} have waited for a sign. It came from {place}.",
    "Our reporter looks at {things} and asks whether {who} should {do}.",
    "{who} gave no date, but a decision to {do} is expected {when}.",
    "Few subjects divide {place} like {things}.",
)

TOPICS = (
    Topic("news", "newslocal",
        "the town council / the Dunmere mayor / city planners / the transit board",
        "raise bus fares / widen the old bridge / close two fire stations / "
        "rezone the riverfront / cut the parks budget / rebuild the flooded library",
        "zoning fights / pothole complaints / municipal contracts / street repairs / "
        "commuter delays"),
    Topic("news", "newspolitics",
        "Senator Halloway / the governor's allies / opposition lawmakers / the ruling coalition",
        "block the spending bill / demand a recount / enter the primary race / call a snap vote / "
        "subpoena the budget chief / rewrite the districting law",
        "campaign promises / ballot measures / swing precincts / impeachment rumors / "
        "committee hearings"),
    Topic("news", "newscrime",
        "county detectives / the prosecutor / a jewel thief / the accused banker",
        "reopen a cold murder case / plead guilty to fraud / search the suspect's cabin / "
        "appeal the prison sentence / trace the stolen diamonds / testify before the grand jury",
        "burglary arrests / court verdicts / unsolved killings / police sketches / bail rulings"),
    Topic("news", "newsworld",
        "the Karvian president / peace envoys / border guards / the island republic",
        "sign a ceasefire / recall its ambassador / lift the trade embargo / "
        "reopen the mountain crossing / expel foreign diplomats / accept more refugees",
        "treaty talks / refugee camps / overseas protests / sanctions lists / summit meetings"),
    Topic("news", "newseducation",
        "school principals / the teachers union / Greywick University / the superintendent",
        "cancel final exams / shrink classroom sizes / freeze student tuition / "
        "strike for better pay / ban phones from lessons / start the school day later",
        "reading scores / college admissions / pupil absences / scholarship rules / "
        "kindergarten waiting lists"),
    Topic("sports", "soccer",
        "Kestrel Rovers / striker Ivo Marant / the Brackwater goalkeeper / coach Delphine Roux",
        "sign a young midfielder / miss the cup final / switch to five defenders / "
        "take the decisive penalty / return from a knee injury / chase the league title",
        "transfer rumors / stoppage time goals / derby matches / offside calls / corner kicks"),
    Topic("sports", "basketball",
        "the Dunmere Comets / point guard Tavi Okello / rookie center Bram Holt / the Embers bench",
        "shoot more three pointers / trade for a veteran forward / sit out the playoffs / "
        "break the assist record / hire a new head coach / extend the winning streak",
        "buzzer beaters / draft picks / slam dunks / overtime losses / free throw routines"),
    Topic("sports", "football",
        "the Thistle County Bulls / quarterback Reese Calder / the Stags defense / "
        "linebacker Otis Bray",
        "start on Sunday despite a concussion / bench the kicker / run a no huddle offense / "
        "return two punts for touchdowns / waive a wide receiver / protect a fourth quarter lead",
        "fumbles / red zone plays / fantasy lineups / blitz packages / two minute drills"),
    Topic("sports", "hockey",
        "the Copper Falls Moose / goalie Lars Bergqvist / captain Mika Tuomi / the Frostbacks",
        "kill every power play / call up a minor league winger / drop the gloves again / "
        "end a long shutout drought / skate without the injured defenseman / waste a two goal lead",
        "slap shots / faceoff battles / hat tricks / penalty box tantrums / rink renovations"),
    Topic("sports", "tennis",
        "champion Noor Valenta / teenager Sofia Brandt / the doubles pair / the top seed",
        "defend the hard court crown / skip the clay season / save four match points / "
        "retire after one last open / rework a shaky serve / beat the defending finalist",
        "five set marathons / wild card entries / baseline rallies / tie breaks / upsets"),
    Topic("finance", "markets",
        "nervous investors / the central bank / Orrin Capital / bond traders",
        "cut interest rates / dump technology shares / buy back its stock / "
        "bet against the dollar / warn of a recession / list on the exchange",
        "dividend stocks / quarterly earnings / index funds / hedge fund losses / currency swings"),
    Topic("finance", "personalfinance",
        "young savers / retirees / a frugal couple / tax advisers",
        "pay off credit card debt / retire at fifty / refinance student loans / "
        "claim an overlooked deduction / live on one salary / build an emergency fund",
        "savings accounts / pension mistakes / household budgets / hidden bank fees / "
        "social security questions"),
    Topic("finance", "realestate",
        "first time buyers / Velden Park landlords / a mansion owner / mortgage lenders",
        "bid above the asking price / convert offices into apartments / demand larger deposits / "
        "sell the lakeside villa / lower the monthly rent / skip the home inspection",
        "starter homes / foreclosure auctions / rental listings / tiny houses / closing costs"),
    Topic("foodanddrink", "recipes",
        "home cooks / baker Lena Moss / a farmhouse chef / grandmothers",
        "roast a turkey overnight / bake sourdough without yeast / freeze leftover gravy / "
        "simmer lentils in cider / fold butter into the dough / swap cream for coconut",
        "slow cooker suppers / pumpkin pies / sheet pan dinners / casseroles / chewy cookies"),
    Topic("foodanddrink", "restaurants",
        "the Old Ferry Grill / a noodle bar / chef Marco Lindqvist / diner owners",
        "open a second dining room / drop the tasting menu / serve brunch all day / "
        "lose a coveted star / ban tipping at the table / bring back the famous burger",
        "steakhouses / taco trucks / buffet secrets / waiter stories / rooftop patios"),
    Topic("foodanddrink", "drinks",
        "a Tessaly winery / craft brewers / bartenders / coffee roasters",
        "age whiskey in cherry casks / pour a cocktail without alcohol / can a pumpkin ale / "
        "harvest grapes by night / brew espresso over ice / raise the price of a pint",
        "red wines / winter cocktails / pale lagers / latte flavors / tasting flights"),
    Topic("lifestyle", "homeandgarden",
        "a thrifty decorator / weekend gardeners / interior designers / the bungalow's owner",
        "paint the kitchen cabinets / prune roses in the fall / declutter every closet / "
        "build raised vegetable beds / hang vintage wallpaper / refinish the oak floors",
        "patio ideas / storage tricks / houseplants / cozy bedrooms / bathroom makeovers"),
    Topic("lifestyle", "family",
        "new parents / a father of five / newlyweds / estranged sisters",
        "adopt three toddlers / cancel a lavish wedding / share one bedroom / "
        "reunite after decades / name the baby after a river / split the household chores",
        "bridesmaid dramas / bedtime routines / marriage lessons / baby names / sibling quarrels"),
    Topic("lifestyle", "pets",
        "a rescue beagle / shelter volunteers / a three legged cat / dog trainers",
        "find a forever home / swim across the harbor / foster senior kittens / "
        "comfort hospital patients / walk home across two states / outgrow the litter box",
        "puppy photos / feline habits / leash rules / parrots / adoption fairs"),
    Topic("health", "fitness",
        "personal trainers / a marathon runner / yoga teachers / office workers",
        "stretch before breakfast / lift heavier weights / run ten miles barefoot / "
        "swap the treadmill for stairs / hold a plank for an hour / train through the cold",
        "squat variations / morning workouts / aching knees / core exercises / step counts"),
    Topic("health", "nutrition",
        "dietitians / a sugar free family / vegan athletes / hungry dieters",
        "give up carbohydrates / eat dinner before six / count every calorie / "
        "add more fiber to lunch / fast every other day / quit diet soda",
        "protein snacks / vitamin supplements / leafy greens / low fat myths / portion sizes"),
    Topic("health", "medical",
        "heart surgeons / Nantwell Hospital / a flu researcher / exhausted nurses",
        "test a cancer vaccine / transplant a kidney by robot / warn of measles cases / "
        "stop prescribing antibiotics / detect strokes earlier / enroll patients in a trial",
        "blood pressure pills / early symptoms / clinic closures / bad sleep / allergy shots"),
    Topic("travel", "destinations",
        "budget travelers / a retired sailor / the Isle of Merrow / backpackers",
        "hike the coastal trail / limit summer visitors / sleep inside a lighthouse / "
        "cross the desert by train / reopen the hidden temple / tour vineyards by bicycle",
        "quiet beaches / mountain villages / national parks / scenic drives / castle hotels"),
    Topic("travel", "airlines",
        "Skylark Airways / cabin crews / a stranded passenger / the Ivory Point airport",
        "charge for carry on bags / ground the oldest jets / board by window seat / "
        "cancel transatlantic flights / ban reclining seats / open a faster security lane",
        "cheap fares / legroom complaints / lost suitcases / frequent flyer miles / runway delays"),
    Topic("technology", "gadgets",
        "phone maker Lumora / app developers / a teenage hacker / smartwatch owners",
        "fold the screen in half / patch a password flaw / drop the headphone jack / "
        "block tracking cookies / double the battery life / unlock doors by voice",
        "laptops / software updates / wireless earbuds / privacy settings / video game consoles"),
    Topic("technology", "space",
        "a moon rover / astronomers / the orbital agency / rocket engineers",
        "land near a lunar crater / photograph a black hole / delay the launch again / "
        "repair a drifting satellite / hear signals from a distant star / bring back comet dust",
        "meteor showers / exoplanets / telescope images / astronaut diaries / solar flares"),
    Topic("weather", "storms",
        "forecasters / a hurricane / coastal residents / emergency crews",
        "flood the low streets / board up windows / expect hail and tornadoes / "
        "order an evacuation / knock out power lines / track the tropical depression",
        "thunderstorm warnings / storm surges / lightning strikes / downed trees / rain totals"),
    Topic("weather", "winter",
        "an arctic front / snowplow drivers / meteorologists / ski resorts",
        "bury the interstate in snow / salt icy sidewalks / shatter a record low / "
        "bring freezing drizzle / open the slopes early / prepare for a blizzard",
        "frost advisories / wind chills / flurries / black ice crashes / cold snaps"),
    Topic("movies", "blockbusters",
        "director Anselm Pike / the Night Falcon sequel / a superhero studio / actress Cora Delane",
        "top the weekend box office / reshoot the ending / cast an unknown villain / "
        "skip the film festival / direct a space western / delay its premiere",
        "trailers / movie sequels / costume designs / box office flops / cameo appearances"),
    Topic("tv", "series",
        "the cast of Harborlight / a streaming service / host Gil Amory / showrunners",
        "kill off a beloved character / film a reunion special / cancel the sitcom / "
        "leave the late night desk / air a live finale / reboot a detective drama",
        "season premieres / plot twists / reality contestants / episode recaps / cliffhangers"),
    Topic("music", "concerts",
        "singer Odessa Vane / the Paper Lanterns / a country duo / rapper Quill",
        "cancel the stadium tour / release a surprise album / headline the desert festival / "
        "record with an orchestra / sweep the song awards / reunite for one encore",
        "love ballads / guitar solos / vinyl reissues / backstage stories / chart toppers"),
    Topic("autos", "cars",
        "carmaker Veyra / a vintage roadster / pickup drivers / mechanics",
        "recall half a million sedans / charge in ten minutes / ditch the manual gearbox / "
        "restore a rusty convertible / tow a house uphill / hide the engine under the seat",
        "electric trucks / crash tests / used minivans / hybrid engines / muscle cars"),
)  # fmt: skip
