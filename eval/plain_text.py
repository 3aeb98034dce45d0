"""Plain English prose, written for this project: a trained model should find it about as likely as before."""

__all__ = ["PASSAGES"]

_TEXT = """
A glacier is a river of ice that moves too slowly to see. Snow falls on high ground year after year, and its own
weight presses it into ice. Gravity then draws the ice downhill, where it scrapes the rock and carries stones to the
valley.

The lighthouse stood on a rock half a mile from the shore. Every evening the keeper climbed the iron stairs, wiped the
glass, and set the lamp turning. Ships far out at sea counted the seconds between flashes and knew exactly where they
were.

Before printing, a book was copied by hand, one page after another. A careful scribe might need several months for a
single volume. When movable type spread through Europe, the same work could be done in days, and prices fell within a
generation.

The moon always shows the same face to the earth because it turns once on its axis in the time that it takes to go
around us. Its far side remained unknown until a spacecraft flew behind it and sent back the first pictures.

Salt was once so valuable that towns grew rich by selling it. It kept meat and fish from spoiling through the winter,
and long roads were built to carry it inland. Some of these old routes can still be followed on foot today.

Marta opened the letter twice before she believed it. Her grandfather had left her the mill, the meadow behind it, and
all of his debts. She folded the paper, put on her coat, and went to look at the great wheel that no longer turned.

A desert is defined by how little rain it gets, not by heat. Large parts of the polar regions count as deserts, since
the cold air above them holds almost no moisture. What snow does fall there may lie for centuries without melting.

Glass is made by melting sand with soda and lime. At a high temperature the mixture flows like thick syrup, and a
worker can gather it on a pipe and blow it into a bubble. As it cools, it grows stiff without ever forming crystals.

The canal was dug by hand over nine years. Thousands of labourers lived in huts along the line, moving north as the
work went on. When the water was finally let in, a brass band played on the first boat, and half the town walked
beside it.

Volcanoes form where melted rock finds a way up through the crust. Some pour out runny lava that spreads in broad
sheets, while others throw ash high into the air. The soil around them is often rich, so people return after each
eruption.

An old clock in the tower had lost a few minutes each week for as long as anyone could recall. The villagers adjusted
their habits rather than the clock. Strangers arrived early for everything, and nobody ever thought to explain the
reason.

Paper was invented in China about two thousand years ago. Makers beat bark, rags and old nets into a pulp, spread it
on a screen, and let it dry. The craft moved west along trade routes and reached the Mediterranean many centuries
later.

Tides rise and fall because the moon pulls on the oceans. The water nearest to it is drawn up a little, and another
bulge forms on the opposite side. As the earth spins, most coasts pass through both of these bulges every day.

The archive lay two floors below the street. Rows of grey boxes held the records of a shipping company that had closed
before the war. In the third row, behind a broken lamp, the historian found the captain's missing log.

Roman engineers built roads in layers. They dug a trench, filled it with large stones, then gravel, then sand, and set
flat slabs on top. A slight curve let the rain run off to the sides, and some stretches still carry carts.

Copper was among the first metals that people learned to work. It can be found in pure lumps and is soft enough to
hammer cold. Mixed with a little tin it becomes bronze, which is harder, melts sooner, and fills a mould more cleanly.

At the edge of the plain there was a station where only one train stopped each week. The master of it kept the
platform swept all the same. He said that a place was as important as the care that somebody took of it.

Caves in limestone are carved by water. Rain picks up a weak acid from the air and the ground, seeps into cracks, and
dissolves the rock grain by grain. Over many thousands of years, a narrow gap may become a hall with pillars of stone.

The first balloons were made of paper and linen and rose on smoke from a straw fire. People believed that the smoke
itself lifted them. In fact it was only the heat, since warm air takes up more room and weighs less than cold.

In a suspension bridge the roadway hangs from cables that pass over tall towers. The cables pull on heavy blocks
buried at both ends, and the towers carry the weight down into the ground. Such bridges can sway a little without
harm.

Two brothers argued for thirty years about a field that was too wet to plough. When the younger one finally won the
case, he walked out to inspect his land and sank to the knees. The older brother pulled him out, laughing.

The Nile flooded every summer and left a layer of dark mud upon the fields. Egyptian farmers measured the height of
the water with marks cut in stone. From these marks officials could guess the harvest, and therefore the taxes, months
ahead.

A compass needle points north because the earth behaves like a weak magnet. Deep under our feet, liquid iron moves in
slow currents and produces the field. The magnetic pole wanders over time, and charts have to be corrected for its
drift.

The painter worked on the chapel ceiling for four winters. He lay on boards close beneath the plaster and mixed colors
by the light of tallow candles. When the boards came down, he could not straighten his neck for a month.

Coal is what remains of forests that grew in swamps long before the dinosaurs. Fallen trunks sank into the mud, where
there was too little oxygen for them to rot. Layers of sand buried them, and heat and pressure did the rest.

Nobody in the valley had seen the sea, though everyone knew someone who claimed to have done so. The teacher owned a
shell. On certain afternoons each pupil was allowed to hold it to one ear for as long as it took to count to twenty.

Saturn's rings look solid from a distance, but they consist of countless pieces of ice and rock. Some are as small as
grains of dust, and others are as large as houses. Together they form a sheet that is astonishingly thin.

Windmills came into use in dry, open country where streams were scarce. Early ones had upright sails turning around a
post. Later builders mounted the sails on the side and made the whole cap rotate, so that it could face any breeze.

The parliament met in a hall that had been a stable. Members sat on rough benches, and the speaker kept order with a
cattle bell. It was meant to be a temporary arrangement, but it lasted for a little over a century.

Silk comes from the cocoon of a moth that feeds on mulberry leaves. Each cocoon is a single thread that may be longer
than half a mile. Workers soften it in hot water, find the loose end, and wind several threads together.

Fossils are traces of living things that were covered before they could decay. Minerals slowly replace the bone or the
shell and keep its form. Most creatures leave nothing behind, so each find tells us about a great many others.

The ferryman charged one coin to cross and two to come back. When travellers complained, he explained that everybody
wanted to see the far bank, but only those who had seen it knew how much they wanted to leave.

Steam engines were first used to pump water out of mines. They burned so much coal that they made sense only where
coal was cheap. A separate condenser saved most of the fuel, and soon engines were driving looms and hauling wagons.

Coral reefs are built by tiny animals that live in colonies. Each one makes a cup of limestone around itself, and new
ones grow upon the old. In warm and shallow seas these walls may reach for hundreds of miles.

The census taker reached the last house at dusk. An old woman there listed eleven people, though only one chair stood
by the fire. He began to object, then noticed the row of portraits on the wall, and wrote down what she said.

Concrete was known to the ancient Romans, who mixed lime with volcanic ash. Their harbor walls grew stronger in sea
water, while many modern ones crumble. Researchers have found that slow reactions inside the material fill its cracks
with new crystals.

Maps of the world must stretch something, since a globe cannot be flattened without tearing. One common kind keeps
angles true, which is useful to sailors, but makes lands near the poles look enormous. Greenland then seems as large
as Africa.

A theatre troupe arrived in the spring with two wagons and a bear that turned out to be a man. They performed in the
square for three nights. On the fourth morning they were gone, and so was the judge's eldest son.

Amber is the hardened resin of ancient trees. It washed up on northern beaches and was traded far to the south, where
it was worn as jewellery. Now and then a piece contains an insect, trapped while the resin was still soft.

The speed of sound depends on what it travels through. In air it covers about a mile in five seconds, in water it is
more than four times faster, and in steel faster still. In empty space there is nothing to carry it at all.

Long before engines, ships crossed the Indian Ocean with the monsoon. The wind blows from the southwest for half the
year and then turns around. Merchants sailed out with one season, waited in port, and came home with the other.

The surveyor planted his flag upon the ridge and sighted back along the chain. According to the treaty, the border ran
straight through a barn. In the end both governments agreed that the cows could cross as they liked.

Iron rusts when it meets both water and oxygen. The reddish crust is loose and flakes away, so that fresh metal is
exposed and the process continues. A thin coat of zinc protects it, because the zinc corrodes first and spares the
iron.

The library of the monastery burned in a single night. By morning the monks had saved forty books by throwing them out
of a window into a cart of hay. Scholars have argued ever since about which forty they ought to have chosen.

Geysers are hot springs that erupt at intervals. Water collects in a deep, narrow channel and is heated far beyond its
usual boiling point by the pressure above it. Once a little escapes at the top, the rest flashes into steam.

The alphabet that we use goes back to traders on the eastern coast of the Mediterranean. They wrote only consonants
with about two dozen signs. The Greeks borrowed the signs and gave the ones that they did not need to vowels.

Every autumn the governor inspected the garrison, and every autumn the same eight soldiers ran along the back of the
wall to be counted again. The reports praised its strength. When raiders finally came, they were invited in for
supper.

A dam holds back a river and stores both water and energy. As the water drops through pipes at the foot of the wall,
it spins turbines that drive generators. Behind the dam, mud settles slowly and takes away some of the space.

Comets are lumps of ice and dust that spend most of their time far from the sun. When one draws near, part of it turns
to gas and streams away as a tail. The tail points away from the sun, even when the comet is leaving.

The auction lasted all afternoon. Chairs, mirrors, and a stuffed heron went to dealers from the capital. At the very
end a locked trunk was sold without its contents being known, and the room fell silent as the hammer came down.

Gold does not tarnish, and that is one reason why it has been prized for so long. It is also easy to shape. A piece
the size of a grain of wheat can be beaten into a sheet large enough to cover a page.

The plague reached the port on a ship from the east. Officials ordered crews to wait offshore for forty days before
they could land, and from that number comes the word quarantine. Other harbors soon copied the rule.

Deep in the ocean no daylight arrives, and the pressure would crush most submarines. Yet life is plentiful around
vents where hot water pours from the sea floor. There, microbes draw energy from chemicals, and whole communities
depend on them.

The telegraph changed what distance meant. A message that had taken three weeks by ship could now cross an ocean in
minutes. Newspapers printed reports from the day before, and merchants learned the price of cotton before the cargo
had arrived.

Erik had carved the same figure for sixty years, a ferry pilot with one raised arm. No two looked alike, he insisted,
although his customers could not tell them apart. After his death, his daughter lined them up and saw a man grow old.

Lightning rods were not welcomed by everyone at first. Some people thought that it was wrong to turn aside a stroke
from heaven. After several church towers had been struck while nearby roofs with a simple iron rod were spared,
opinions changed.

Marble starts out as limestone and is changed by heat and pressure deep underground. Its fine grain allows a sculptor
to cut sharp details, and light enters a short way below the surface, which gives statues a faint glow like skin.

The expedition wintered in the ice with provisions for a year. By the second spring they were eating boiled leather. A
whaler found them on a beach in July, thin and sunburnt, arguing about the name of a cape.

Sand dunes travel. Wind rolls the grains up the gentle slope, and they tumble down the steep one, so the entire hill
creeps forward. A large dune may move by several yards in a year and bury whatever stands in its path.

The old observatory was built on a hill outside the city, but the city grew until it surrounded the hill. Street lamps
drowned the fainter stars one by one. Today the dome is a museum, and the real telescopes are on distant mountains.
"""

PASSAGES: tuple[str, ...] = tuple(" ".join(passage.split()) for passage in _TEXT.strip().split("\n\n"))
"""Sixty passages of 35 to 60 words, on subjects that no prompt of the constraints task is about."""
